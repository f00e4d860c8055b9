"""Completions of one prompt with their rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from culm.rollout.trajectory import Trajectory


@dataclass(frozen=True)
class Group:
    """rewards: one a trajectory; nan where it could not be scored. parts: what each kind of reward
    gave, by its name.
    """

    trajectories: Sequence[Trajectory]
    rewards: Sequence[float]
    parts: dict[str, Sequence[float]]

    @property
    def mixed(self) -> bool:
        """Whether some completion earned more than another, so that comparing them teaches."""
        return len({reward for reward in self.rewards if not math.isnan(reward)}) > 1


def filled(groups: Sequence[Group], others: Sequence[Group]) -> list[Group]:
    """The same with `others` in the places of those that are not mixed, as far as they go."""
    left = iter(others)
    return [group if group.mixed else next(left, group) for group in groups]
