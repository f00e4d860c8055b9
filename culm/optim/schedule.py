"""Schedules: the learning rate at a step, as a fraction of the peak rate."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, PositiveInt

from culm.config import Config, one_of


def _warmup(step: float, steps: float, share: float) -> float:
    # (step + 1): the first step learns too.
    return min(1.0, (step + 1) / max(1, round(share * steps)))


class Cosine(Config):
    """Linear warm-up, then half a cosine down.

    warmup: share of the steps in which the rate rises.
    final: the rate that a step after the last one would have, as a share of the greatest.
    """

    kind: Literal["cosine"] = "cosine"
    warmup: float = Field(0.02, ge=0, lt=1)
    final: float = Field(0.1, ge=0, le=1)

    def factor(self, step: float, steps: float) -> float:
        """In (0, 1], for step 0 .. steps - 1."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return _warmup(step, steps, self.warmup)
        through = (step - warm) / max(1, steps - warm)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * through))


class WSD(Config):
    """Warm-up, stable, decay (arXiv 2404.06395); the decay is 1 - sqrt(x) (arXiv 2405.18392).

    warmup: share of the steps in which the rate rises. decay: share in which it falls.
    final: the rate that a step after the last one would have, as a share of the greatest.
    """

    kind: Literal["wsd"] = "wsd"
    warmup: float = Field(0.02, ge=0, lt=1)
    decay: float = Field(0.2, gt=0, le=1)
    final: float = Field(0.0, ge=0, le=1)

    def factor(self, step: float, steps: float) -> float:
        """In (0, 1], for step 0 .. steps - 1."""
        start = steps - max(1, round(self.decay * steps))
        if step < start:
            return _warmup(step, steps, self.warmup)
        through = (step - start + 1) / (steps - start + 1)
        down = self.final + (1 - self.final) * (1 - math.sqrt(through))
        return min(_warmup(step, steps, self.warmup), down)


class LinearDecay(Config):
    """Linear warm-up, then a straight line down.

    warmup: share of the steps in which the rate rises.
    final: the rate that a step after the last one would have, as a share of the greatest.
    """

    kind: Literal["linear"] = "linear"
    warmup: float = Field(0.02, ge=0, lt=1)
    final: float = Field(0.0, ge=0, le=1)

    def factor(self, step: float, steps: float) -> float:
        """In (0, 1], for step 0 .. steps - 1."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return _warmup(step, steps, self.warmup)
        through = (step - warm + 1) / (steps - warm + 1)
        return self.final + (1 - self.final) * (1 - through)


class InverseSqrt(Config):
    """Linear warm-up, then the inverse root of the step (arXiv 1706.03762): it knows no end.

    warmup_steps: in which the rate rises; four times as many halve it.
    """

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup_steps: PositiveInt = 100

    def factor(self, step: float, steps: float) -> float:
        """In (0, 1], for step 0, 1, ..."""
        return min((step + 1) / self.warmup_steps, math.sqrt(self.warmup_steps / (step + 1)))


class Cyclic(Config):
    """Linear warm-up, then cosines down, each from the greatest rate (arXiv 1608.03983).

    warmup: share of the steps in which the rate rises. cycles: in the other steps, of equal length.
    final: the rate that a step after a cycle would have, as a share of the greatest.
    """

    kind: Literal["cyclic"] = "cyclic"
    warmup: float = Field(0.02, ge=0, lt=1)
    cycles: PositiveInt = 4
    final: float = Field(0.1, ge=0, le=1)

    def factor(self, step: float, steps: float) -> float:
        """In (0, 1], for step 0 .. steps - 1."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return _warmup(step, steps, self.warmup)
        _, through = divmod((step - warm) * self.cycles / max(1, steps - warm), 1)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * through))


class Constant(Config):
    """Linear warm-up, then level.

    warmup: share of the steps in which the rate rises.
    """

    kind: Literal["constant"] = "constant"
    warmup: float = Field(0.0, ge=0, lt=1)

    def factor(self, step: float, steps: float) -> float:
        """In (0, 1], for step 0 .. steps - 1."""
        return _warmup(step, steps, self.warmup)


Schedule = one_of(Cosine | LinearDecay | WSD | Constant | InverseSqrt | Cyclic)
