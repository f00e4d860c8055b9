"""The base of every reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
from pydantic import Field

from culm.config import Config, SettingError
from culm.objective.objective import Load
from culm.rollout.trajectory import Trajectory

Score = Callable[[Sequence[Trajectory]], list[float]]


class RewardConfig(Config, ABC):
    """weight: of this reward in the sum. label: its name in metrics (`reward_LABEL`), where several
    rewards are added; its kind unless given.
    """

    kind: str
    weight: float = 1.0
    label: str | None = Field(None, pattern="^[a-z0-9_]+$")

    @abstractmethod
    def build(self, load: Load) -> Score:
        """A function from finished trajectories to one number each, before the weight; nan where
        one cannot be scored, which leaves it out.

        load: reads a model by its path.
        """


def named(rewards: Iterable[RewardConfig]) -> dict[str, RewardConfig]:
    """Rewards by their names in metrics.

    Raises:
        SettingError: two have the same name.
    """
    found: dict[str, RewardConfig] = {}
    for reward in rewards:
        if (name := reward.label or reward.kind) in found:
            raise SettingError(
                f"train.rollout.reward: two rewards have the name {name!r}; give one a label"
            )
        found[name] = reward
    return found


def scores_of(name: str, score: Score, trajectories: Sequence[Trajectory]) -> list[float]:
    """What a reward gives, one number for each trajectory; nan where it cannot score one.

    Raises:
        SettingError: it gives something else, or fails.
    """
    try:
        found = torch.tensor(score(trajectories), dtype=torch.float64)
    except (SettingError, OSError, MemoryError):
        raise
    except Exception as error:  # a reward may be anyone's code
        reason = f"{type(error).__name__}: {error}"
        raise SettingError(f"train.rollout.reward: {name} failed: {reason}") from error
    if found.shape != (len(trajectories),):
        raise SettingError(
            f"train.rollout.reward: {name} gave numbers of shape {tuple(found.shape)} for "
            f"{len(trajectories)} answers; it must give one for each"
        )
    for number in found.float().isinf().nonzero()[:1, 0].tolist():
        said = str(trajectories[number].messages[-1]["content"])
        raise SettingError(
            f"train.rollout.reward: {name} is {float(found[number])} for the answer {said[:40]!r}; "
            "it must be a finite number, or nan where it cannot score an answer"
        )
    return found.tolist()
