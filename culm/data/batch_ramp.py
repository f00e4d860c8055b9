"""A batch size that grows while a run is young, when small batches are as good (arXiv 2005.14165).

rows |         ____________
     |      __|
     |   __|
     |__|______________________ steps
        start + increment + ...

Which rows a step reads, and where the learning rate is, follow from the rows before it: they are
those of a run with whole batches that has read as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from pydantic import PositiveInt

from culm.config import Config, SettingError


class BatchRamp(Config):
    """start: sequences of the first step. increment: how many are added at a time, at equal
    distances, as in rampup-batch-size of Megatron-LM. steps: after which `train.batch_size` is
    reached.
    """

    start: PositiveInt
    increment: PositiveInt
    steps: PositiveInt


@dataclass(frozen=True)
class BatchSizes:
    """How many rows each step has, a function of its number. full: after the ramp, if there is
    one.
    """

    full: int
    ramp: BatchRamp | None = None

    def of(self, step: int) -> int:
        """Rows of step `step` (from 0)."""
        if self.ramp is None or step >= self.ramp.steps:
            return self.full
        increments = (self.full - self.ramp.start) // self.ramp.increment
        return self.ramp.start + self.ramp.increment * (step * increments // self.ramp.steps)

    def before(self, step: int) -> int:
        """Rows of all steps before this one."""
        ramped = self._ramped
        if step < len(ramped):
            return ramped[step]
        return ramped[-1] + (step - len(ramped) + 1) * self.full

    @property
    def least(self) -> int:
        """Rows of the smallest step."""
        return self.of(0)

    def check(self, ranks: int) -> None:
        """Whether every step divides over the ranks.

        Raises:
            SettingError: one does not.
        """
        if self.full % ranks:
            raise SettingError(f"train.batch_size: {self.full} does not divide over {ranks} ranks")
        if self.ramp is not None and (self.ramp.start % ranks or self.ramp.increment % ranks):
            raise SettingError(
                f"train.batch_ramp: start={self.ramp.start} and increment={self.ramp.increment} do "
                f"not both divide over {ranks} ranks; use multiples of {ranks}"
            )

    @cached_property
    def _ramped(self) -> Sequence[int]:
        """Rows before each step of the ramp, and before the first one after it."""
        steps = 0 if self.ramp is None else self.ramp.steps
        return [0, *accumulate(map(self.of, range(steps)))]
