"""A penalty for answers that do not end."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from culm.objective.objective import Load
from culm.rollout.reward.reward import RewardConfig, Score


class MissingEOS(RewardConfig):
    """penalty: what a completion loses that reached its limit before an end token."""

    kind: Literal["missing_eos"] = "missing_eos"
    penalty: PositiveFloat = 1.0

    def build(self, load: Load, seed: int) -> Score:
        return lambda trajectories: [
            0.0 if one.finish == "stop" else -self.penalty for one in trajectories
        ]
