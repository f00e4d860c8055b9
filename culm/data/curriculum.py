"""A curriculum: which part of a corpus, sorted by difficulty, is read at a step.

The unit is the share of rows that are easier: 0 the easiest, 1 the hardest. A strategy says from
where to where a step may read; within it, all rows are equally likely.

    competence    0 .. c(t), which grows from `initial` to 1 (arXiv 1903.09848)
    baby_steps    0 .. 1/n, 0 .. 2/n, ... 0 .. 1       cumulative buckets (Bengio et al., 2009)
    one_pass      0 .. 1/n, 1/n .. 2/n, ...            each bucket once
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from culm.config import Config, one_of
from culm.data.difficulty import Difficulty, Length


class Competence(Config):
    """c(t) = min(1, (t (1 - c0^p) / T + c0^p)^(1/p)) after t of T steps.

    initial: c0, the share of rows that the first step may read. power: p; 1 is linear, 2 the root
    of the paper, which spends more steps on the hard part.
    """

    kind: Literal["competence"] = "competence"
    initial: float = Field(0.05, gt=0, le=1)
    power: PositiveFloat = 2.0

    def part(self, step: int, steps: int) -> tuple[float, float]:
        """From where to where step `step` (from 0) of this many may read."""
        start = self.initial**self.power
        return 0.0, min(1.0, (step * (1 - start) / steps + start) ** (1 / self.power))


class Buckets(Config, ABC):
    """buckets: parts of equal size, each of which begins `steps / buckets` steps after the last."""

    buckets: int = Field(5, ge=2)

    @abstractmethod
    def part(self, step: int, steps: int) -> tuple[float, float]:
        """As `Competence.part`."""


class BabySteps(Buckets):
    """Each bucket is read together with all easier ones."""

    kind: Literal["baby_steps"] = "baby_steps"

    def part(self, step: int, steps: int) -> tuple[float, float]:
        """As `Competence.part`."""
        return 0.0, (step * self.buckets // steps + 1) / self.buckets


class OnePass(Buckets):
    """Each bucket is read alone."""

    kind: Literal["one_pass"] = "one_pass"

    def part(self, step: int, steps: int) -> tuple[float, float]:
        """As `Competence.part`."""
        bucket = step * self.buckets // steps
        return bucket / self.buckets, (bucket + 1) / self.buckets


class Curriculum(Config):
    """steps: after this many, all rows are read, as without a curriculum.

    difficulty: what makes an example hard. strategy: how much of the sorted rows is read at a step.
    hardest_first: from hard to easy, as a control.
    """

    steps: PositiveInt
    difficulty: Difficulty = Length()
    strategy: one_of(Competence | BabySteps | OnePass) = Competence()  # type: ignore[valid-type]
    hardest_first: bool = False

    @model_validator(mode="after")
    def _long_enough(self) -> Curriculum:
        strategy = self.strategy
        if isinstance(strategy, Buckets) and strategy.buckets > self.steps:
            raise ValueError(
                f"strategy.buckets: {strategy.buckets} buckets need a step each, and "
                f"steps={self.steps}"
            )
        return self

    def part(self, step: int) -> tuple[float, float]:
        """From where to where step `step` (from 0) may read."""
        if step >= self.steps:
            return 0.0, 1.0
        start, end = self.strategy.part(step, self.steps)
        return float(start), float(end)

    def cut(self, step: int, rows: int) -> tuple[int, int]:
        """The same of this many sorted rows; at least one."""
        start, end = (int(share * rows + 1e-9) for share in self.part(step))
        end = max(1, end)
        return min(start, end - 1), end
