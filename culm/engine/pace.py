"""How much of waiting prompts is read between two decoding steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

DECODING_STEPS = 4  # a part of a prompt takes about as long as so many of them,
SECONDS = 0.02  # or so long, where they are shorter than a reader notices
LEAST_TOKENS = 16  # fewer are hardly faster
NEWEST = 0.3  # weight of the newest measurement

Work = Literal["decoding", "prompts", "scores"]
T = TypeVar("T")


class Pace:
    """Chooses the number of tokens from how long earlier steps took.

    limit: tokens of a step where nothing is decoded, and the most otherwise. The sizes of the parts
    depend on the machine; answers do not, up to rounding.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._limit, self._clock = limit, clock
        self._seconds: dict[Work, float] = {}  # of a decoding step, and of a token of the others

    def tokens(self, work: Work, running: int) -> int:
        """Tokens that the next step may read while so many requests are running."""
        if not running:
            return self._limit
        if not {"decoding", work} <= self._seconds.keys():
            return min(LEAST_TOKENS, self._limit)
        seconds = max(DECODING_STEPS * self._seconds["decoding"], SECONDS)
        fitting = int(seconds / max(self._seconds[work], 1e-9))
        return min(max(fitting - fitting % LEAST_TOKENS, LEAST_TOKENS), self._limit)

    @contextmanager
    def measured(self, work: Work, count: int = 1) -> Iterator[None]:
        """Measure work on so many tokens, or a decoding step."""
        start = self._clock()
        yield
        self._add(work, (self._clock() - start) / count)

    def parts(self, work: Work, parts: Iterator[T], size: Callable[[T], int]) -> Iterator[T]:
        """The same parts, each of which is measured. size: tokens of a part."""
        start = self._clock()
        for part in parts:
            self._add(work, (self._clock() - start) / max(size(part), 1))
            yield part
            start = self._clock()

    def _add(self, work: Work, newest: float) -> None:
        before = self._seconds.get(work, newest)
        self._seconds[work] = before + NEWEST * (newest - before)
