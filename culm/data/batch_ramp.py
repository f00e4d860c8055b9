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

from dataclasses import dataclass

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
        if self.ramp is None:
            return step * self.full
        ramped = min(step, self.ramp.steps)
        increments = (self.full - self.ramp.start) // self.ramp.increment
        added = self.ramp.increment * lattice_sum(ramped, increments, self.ramp.steps)
        return ramped * self.ramp.start + added + (step - ramped) * self.full

    @property
    def distinct(self) -> list[int]:
        """Rows that a step may have, in order."""
        if self.ramp is None:
            return [self.full]
        levels = range(self.ramp.start, self.full + 1, self.ramp.increment)
        if self.ramp.steps >= len(levels):
            return list(levels)
        return sorted({self.full, *map(self.of, range(self.ramp.steps))})

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


def lattice_sum(count: int, numerator: int, denominator: int) -> int:
    """The sum of i * numerator // denominator for i from 0 to count - 1.

    Points of a lattice under a line, counted by columns and rows in turn, as in Euclid's algorithm:
    so the length of a ramp costs nothing.
    """
    total, offset = 0, 0
    while count:
        total += count * (count - 1) // 2 * (numerator // denominator)
        total += count * (offset // denominator)
        numerator, offset = numerator % denominator, offset % denominator
        count, offset = divmod(numerator * count + offset, denominator)
        numerator, denominator = denominator, numerator
    return total
