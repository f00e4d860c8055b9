"""Which waiting prompts are read next: together, or one long one in steps.

A prompt that is longer than a step is read in the last slot, which decoding does not use while
fewer rows are running. When all of it has been read, it is copied to where the running rows end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from culm.engine.request import Running
from culm.engine.runner import Runner

PREFILL_TOKENS = 8192  # of one forward, padding included: bounds its memory


@dataclass
class Prefill:
    """Rows with one prompt and adapter, of which `done` tokens have been read."""

    rows: list[Running]
    done: int = 0

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.rows[0].request.prompt

    def advance(self, runner: Runner, tokens: int) -> Tensor | None:
        """Read up to so many tokens; logits (N, V) of the rows after the last one."""
        end = min(self.done + tokens, len(self.prompt))
        logits = runner.read(self.rows[0], self.done, end, runner.slots - 1)
        self.done = end
        return logits.repeat(len(self.rows), 1) if end == len(self.prompt) else None

    def spread(self, runner: Runner, first: int) -> None:
        """Copy the prompt into a slot for each row, from `first` on."""
        last = runner.slots - 1
        for slot in range(first, first + len(self.rows)):
            if slot != last:
                runner.cache.copy(last, slot, self.done)


def similar(new: Sequence[Running]) -> Iterator[list[Running]]:
    """Requests sorted by length, in groups small enough for one forward."""
    group: list[Running] = []
    for waiting in sorted(new, key=lambda waiting: waiting.length):
        if group and (len(group) + 1) * waiting.length > PREFILL_TOKENS:
            yield group
            group = []
        group.append(waiting)
    yield group


def next_group(waiting: deque[Running], free: int, tokens: int) -> list[Running]:
    """Take from the front what fits into one step: at least one request, up to `free`.

    A prompt of more than `tokens` tokens is alone, except for equal ones that follow it.
    """
    group = [waiting.popleft()]
    longest = group[0].length
    while waiting and len(group) < free:
        longest = max(longest, waiting[0].length)
        fits = (len(group) + 1) * longest <= tokens
        if not fits and any(row.source != waiting[0].source for row in group):
            break
        group.append(waiting.popleft())
    return group
