"""The score that the task itself gives: right or wrong."""

from __future__ import annotations

from typing import Literal

from culm.objective.objective import Load
from culm.rollout.reward.reward import RewardConfig, Score


class TaskScore(RewardConfig):
    """The score of the episode, 0 to 1."""

    kind: Literal["task"] = "task"

    def build(self, load: Load, seed: int) -> Score:
        return lambda trajectories: [one.episode.score() for one in trajectories]
