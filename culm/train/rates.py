"""Where a learning rate is in its schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from culm.data.batch_ramp import BatchSizes


class RateSchedule(Protocol):
    def factor(self, step: float, steps: float) -> float:
        """Of the peak rate, in step `step` (from 0) of this many."""
        ...


@dataclass(frozen=True)
class ByRows:
    """A schedule that goes by the rows that were read, as a batch size that grows asks for.

    passed: steps whose data the run has left out so far. Its step n reads the rows of step
    n + passed, so it has the batch size and the rate of that one.
    """

    schedule: RateSchedule
    sizes: BatchSizes
    passed: Callable[[], int] = lambda: 0

    def factor(self, step: float, steps: float) -> float:
        """The factor of a run with full batches, at the step where it has read as many rows."""
        before, full, passed = self.sizes.before, self.sizes.full, self.passed()
        at, end = (before(int(number) + passed) / full for number in (step, steps))
        return self.schedule.factor(at, end)
