"""The base of every reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from culm.config import Config
from culm.objective.objective import Load
from culm.rollout.trajectory import Trajectory

Score = Callable[[Sequence[Trajectory]], list[float]]


class RewardConfig(Config, ABC):
    """weight: of this reward in the sum."""

    kind: str
    weight: float = 1.0

    @abstractmethod
    def build(self, load: Load) -> Score:
        """A function from finished trajectories to one number each, before the weight.

        load: reads a model by its path.
        """
