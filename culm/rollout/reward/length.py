"""A penalty for answers that are too long."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt, model_validator

from culm.objective.objective import Load
from culm.rollout.reward.reward import RewardConfig, Score


class LengthPenalty(RewardConfig):
    """Soft overlong punishment (DAPO, arXiv 2503.14476), which falls evenly from 0 to -1.

    longest: sampled tokens at which it is -1. margin: tokens before these at which it starts.
    """

    kind: Literal["length"] = "length"
    longest: PositiveInt
    margin: PositiveInt

    @model_validator(mode="after")
    def _ordered(self) -> LengthPenalty:
        if self.margin > self.longest:
            raise ValueError(f"margin: {self.margin} is more than longest={self.longest}")
        return self

    def penalty(self, tokens: int) -> float:
        """Of an answer with this many tokens, -1 to 0."""
        return -min(1.0, max(0.0, (tokens - self.longest + self.margin) / self.margin))

    def build(self, load: Load, seed: int) -> Score:
        return lambda trajectories: [self.penalty(one.sampled) for one in trajectories]
