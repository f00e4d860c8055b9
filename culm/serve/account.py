"""What one query has used so far, and how long it may still take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from culm.serve.clients import Share
from culm.serve.metrics import Metrics
from culm.serve.refusal import Refusal, TooSlow
from culm.serve.settings import ServeConfig


class Account:
    """Counts tokens and times of a query's answers, for its client and for the metrics.

    prompts: ids of each prompt. choices: answers of each prompt.
    """

    def __init__(
        self,
        metrics: Metrics,
        share: Share,
        settings: ServeConfig,
        prompts: Sequence[Sequence[int]],
        choices: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics, self._share, self._settings = metrics, share, settings
        self._prompts, self._choices, self._clock = list(map(len, prompts)), choices, clock
        self._start = clock()
        self._last: dict[int, float] = {}  # when the newest token of a choice came
        self._open = dict.fromkeys(range(len(prompts) * choices), 0)  # tokens, until it has ended
        self.prompt_tokens, self.generated_tokens, self.cached_tokens = metrics.read(prompts), 0, 0

    def token(self, choice: int, cached: int) -> None:
        """A token has come. cached: tokens of the prompt that came from the prefix cache."""
        now, before = self._clock(), self._last.get(choice)
        if before is None:
            self._metrics.first_token.observe(now - self._start)
            if choice % self._choices == 0:  # each prompt counts once
                self.cached_tokens += cached
                self._metrics.found(self._prompts[choice // self._choices], cached)
        else:
            self._metrics.between_tokens.observe(now - before)
        self._last[choice] = now
        self._open[choice] += 1
        self.generated_tokens += 1
        self._metrics.token()

    def end(self, choice: int, reason: str) -> None:
        """A choice has come to its end."""
        if choice in self._open:
            self._metrics.finished(reason, self._open.pop(choice), self._clock() - self._start)

    def fail(self, refusal: Refusal) -> None:
        """The rest ends with an error."""
        self._metrics.failed(len(self._open), refusal)
        self._open.clear()

    def close(self) -> None:
        """Nobody waits for the rest."""
        self._metrics.aborted(len(self._open))
        self._open.clear()
        self._share.end(self.prompt_tokens + self.generated_tokens)

    def left(self) -> float:
        """Seconds for which the next token may be waited for.

        Raises:
            TooSlow: a limit has passed.
        """
        waiting = not self._last
        limit = self._settings.queue_seconds if waiting else self._settings.answer_seconds
        left = self._start + limit - self._clock()
        if left <= 0:
            raise TooSlow(limit, waiting)
        return left
