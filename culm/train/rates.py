"""Where a learning rate is in its schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from culm.data.batch_ramp import BatchSizes


class RateSchedule(Protocol):
    def factor(self, step: float, steps: float) -> float:
        """Of the peak rate, in step `step` (from 0) of so many."""
        ...


@dataclass(frozen=True)
class ByRows:
    """A schedule that goes by the rows that were read, as a batch size that grows asks for."""

    schedule: RateSchedule
    sizes: BatchSizes

    def factor(self, step: float, steps: float) -> float:
        """As that of a run with full batches which has read as many rows."""
        before, full = self.sizes.before, self.sizes.full
        return self.schedule.factor(before(int(step)) / full, before(int(steps)) / full)
