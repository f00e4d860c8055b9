"""How many prompt tokens are prefilled between two decoding steps.

More tokens at once are read faster, since the weights are read once for all of them, but running
requests wait for them. A part of a prompt takes about as long as a few decoding steps, or so long
that no reader of a stream notices, or as long as is needed to read at half of the full speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

DECODING_STEPS = 4
SECONDS = 0.05
LEAST_TOKENS = 32
NEWEST = 0.3  # weight of the newest measurement
STALE = 40  # measurements after which an older one of another size counts no more

Work = Literal["prompts", "scores"]
T = TypeVar("T")


class Pace:
    """Chooses the number of tokens from how long earlier parts of each size took.

    limit: tokens of a step where nothing is decoded, and the most otherwise. The sizes of the parts
    depend on the machine; answers do not, up to rounding.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._limit, self._clock = limit, clock
        self._sizes = [min(LEAST_TOKENS, limit)]
        while self._sizes[-1] < limit:
            self._sizes.append(min(2 * self._sizes[-1], limit))
        self._decoding = 0.0  # seconds of a step
        self._parts: dict[Work, dict[int, tuple[float, int]]] = {}  # seconds of a size, and when
        self._count = 0

    def tokens(self, work: Work, running: int) -> int:
        """Tokens that the next step may read while this many requests are running."""
        if not running:
            return self._limit
        known = self._known(work)
        chosen = self._sizes[0]
        if chosen not in known:
            return chosen
        allowed = max(DECODING_STEPS * self._decoding, SECONDS, 2 * known[chosen])
        for size in self._sizes[1:]:
            if self._expected(known, size) > allowed:
                break
            chosen = size
        return chosen

    def _known(self, work: Work) -> dict[int, float]:
        """Seconds of the sizes that were measured lately."""
        parts = self._parts.get(work, {})
        return {size: seconds for size, (seconds, at) in parts.items() if at > self._count - STALE}

    def _expected(self, known: dict[int, float], size: int) -> float:
        """Seconds for a size, from those of smaller ones where it is not known."""
        if size in known:
            return known[size]
        place = self._sizes.index(size)
        before = known.get(self._sizes[place - 1], float("inf"))
        earlier = known.get(self._sizes[place - 2]) if place > 1 else None
        return 2 * before if earlier is None else before + 2 * max(before - earlier, 0.0)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Measure a decoding step."""
        start = self._clock()
        yield
        seconds = self._clock() - start
        self._decoding += (NEWEST if self._decoding else 1.0) * (seconds - self._decoding)

    @contextmanager
    def reading(self, tokens: int) -> Iterator[None]:
        """Measure a step that reads this many tokens of prompts."""
        start = self._clock()
        yield
        self._add("prompts", tokens, self._clock() - start)

    def scored(self, parts: Iterator[T], tokens: Callable[[T], int]) -> Iterator[T]:
        """The same parts, each of which is measured. tokens: how many a part has."""
        start = self._clock()
        for part in parts:
            self._add("scores", tokens(part), self._clock() - start)
            yield part
            start = self._clock()

    def _add(self, work: Work, tokens: int, seconds: float) -> None:
        size = next((size for size in self._sizes if tokens <= size), self._limit)
        if 4 * tokens < 3 * size:  # the rest of a prompt tells little about a whole part
            return
        before = self._known(work).get(size, seconds)
        self._count += 1
        new = before + NEWEST * (seconds - before)
        self._parts.setdefault(work, {})[size] = new, self._count
