"""Several reward models or heads, which a policy cannot deceive as easily as one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from culm.config import SettingError, refuse_unused
from culm.objective.objective import Load
from culm.rollout.reward.model import scorer
from culm.rollout.reward.reward import RewardConfig, Score
from culm.rollout.trajectory import Trajectory


class Ensemble(RewardConfig):
    """Scores of several reward models as one number (arXiv 2310.02743).

    paths: models that `culm train reward` made, with the tokenizer of the policy. Each head of a
    model is a member (`train.objective.heads`); there must be two or more members.
    combine: their mean, the lowest (min), or the mean minus k standard deviations (deviation). k:
    how many of these. batch_size: dialogues read at once.
    """

    kind: Literal["ensemble"] = "ensemble"
    paths: tuple[str, ...] = Field(min_length=1)
    combine: Literal["mean", "min", "deviation"] = "mean"
    k: NonNegativeFloat = 1.0
    batch_size: PositiveInt = 32

    @field_validator("paths")
    @classmethod
    def _distinct(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(paths)) < len(paths):
            raise ValueError("a path is given twice; give each model once")
        return paths

    @model_validator(mode="after")
    def _deviates(self) -> Ensemble:
        refuse_unused(self, "k", self.combine == "deviation", "combine=deviation")
        return self

    def combined(self, scores: Sequence[float]) -> float:
        """Of the scores of one dialogue; the standard deviation is that of these models."""
        if not all(map(math.isfinite, scores)):
            return sum(scores)  # nan leaves the dialogue out, and infinity is refused
        if self.combine == "min":
            return min(scores)
        spread = statistics.pstdev(scores) if self.combine == "deviation" else 0.0
        return statistics.fmean(scores) - self.k * spread

    def build(self, load: Load, seed: int) -> Score:
        setting = "train.reward.paths"
        members = [scorer(setting, path, load, self.batch_size) for path in self.paths]

        def scores(trajectories: Sequence[Trajectory]) -> list[float]:
            every = zip(*(member(trajectories) for member in members), strict=True)
            found = [[score for heads in each for score in heads] for each in every]
            if found and len(found[0]) < 2:
                raise SettingError(
                    f"{setting}: {self.paths[0]} has one head, which is no ensemble; give more "
                    "models, or one that was trained with train.objective.heads=2 or more"
                )
            return list(map(self.combined, found))

        return scores
