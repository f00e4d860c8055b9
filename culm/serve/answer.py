"""Events of the engine -> pieces of text with their log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from culm.engine.request import Event
from culm.serve.worker import Job, Worker
from culm.text.reply import Reply
from culm.tokenizer.tokenizer import Tokenizer

QUIET_SECONDS = 15  # after this time without a token, `pieces` yields None


class TokenScore(NamedTuple):
    """A token, its log-probability (None: nothing precedes it), and the most likely ones."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class TextPiece(NamedTuple):
    """A part of one choice. finish: why it is the last one; None: it is not."""

    choice: int
    text: str
    scores: tuple[TokenScore, ...] = ()
    finish: str | None = None


@dataclass
class GrowingText:
    """One choice so far. Scores wait for the text of their token, and are dropped with it."""

    reply: Reply
    shown: int = 0
    waiting: list[tuple[int, TokenScore]] = field(default_factory=list)  # (offset in text, score)

    def read(self, event: Event) -> tuple[str, tuple[TokenScore, ...], str | None]:
        """Text, scores and finish that can be shown after one more token."""
        offset = self.shown + self.reply.held
        text = self.reply.read(event)
        self.shown += len(text)
        if event.top and event.finish != "stop":  # the stop token is no part of the text
            (_, logprob), *top = event.top
            self.waiting.append((offset, TokenScore(event.token, logprob, tuple(top))))
        all_shown = not self.reply.stopped and not self.reply.held
        ready = tuple(score for offset, score in self.waiting if all_shown or offset < self.shown)
        self.waiting = self.waiting[len(ready) :]
        stopped = self.reply.stopped or event.finish == "complete"
        return text, ready, "stop" if stopped else event.finish


class AnswerStream:
    """All choices of a query, piece by piece; leaving `pieces` early ends the generation.

    echoes: what comes before the generated text. prompt_tokens: of all prompts together.
    """

    def __init__(
        self,
        worker: Worker,
        job: Job,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        echoes: Sequence[TextPiece] = (),
        prompt_tokens: int = 0,
    ) -> None:
        self._worker, self._job = worker, job
        self._texts = [GrowingText(Reply(tokenizer, stops)) for _ in job.requests]
        self._echoes = tuple(echoes)
        self.prompt_tokens = prompt_tokens
        self.generated_tokens = 0

    async def pieces(self) -> AsyncIterator[TextPiece | None]:
        """Pieces as they come; None after QUIET_SECONDS without one.

        Raises:
            Refusal: the generation ended before its time.
        """
        left = len(self._texts)
        try:
            for echo in self._echoes:
                yield echo
            while left:
                try:
                    index, event = await asyncio.wait_for(self._job.next(), QUIET_SECONDS)
                except TimeoutError:
                    yield None
                    continue
                growing = self._texts[index]
                if growing.reply.stopped:  # a token that was on its way when its text ended
                    continue
                self.generated_tokens += 1
                text, scores, finish = growing.read(event)
                if finish:
                    left -= 1
                    self._worker.abort(self._job, index)
                if text or scores or finish:
                    yield TextPiece(index, text, scores, finish)
        finally:
            self.leave()

    @property
    def choices(self) -> int:
        """Texts that are generated."""
        return len(self._texts)

    def leave(self) -> None:
        """End what still runs."""
        self._worker.abort(self._job)
