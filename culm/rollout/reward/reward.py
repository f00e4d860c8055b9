"""The base of every reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat

from culm.config import Config, SettingError
from culm.objective.objective import Load
from culm.rollout.trajectory import Trajectory

Score = Callable[[Sequence[Trajectory]], list[float]]


class RewardConfig(Config, ABC):
    """weight: of this reward in the sum. label: its name in metrics (`reward_LABEL`), where several
    rewards are added or one is shaped; its kind unless given.

    whiten: give it mean 0 and standard deviation 1 over each batch, of all ranks. clip: limit it to
    the range from -clip to clip, after whitening and before the weight.

    tried: whether a plan has it score a made-up completion, before any is sampled.
    """

    tried: ClassVar[bool] = False

    kind: str
    weight: float = 1.0
    label: str | None = Field(None, pattern="^[a-z0-9_]+$")
    whiten: bool = False
    clip: PositiveFloat | None = None

    @property
    def least_group(self) -> int:
        """Completions of one prompt that it compares, at least."""
        return 1

    @property
    def files(self) -> tuple[Path, ...]:
        """What it reads besides models; a run resumes only from the same contents."""
        return ()

    @abstractmethod
    def build(self, load: Load, seed: int) -> Score:
        """A function from finished trajectories, in complete groups, to one number each, before it
        is shaped and weighted. It gives nan where one cannot be scored, which leaves it out, and
        may say why in `Trajectory.problem`.

        load: reads a model by its path. seed: of what it chooses at random.
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
                f"train.reward: two rewards have the name {name!r}; give one a label"
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
        raise SettingError(f"train.reward: {name} failed: {reason}") from error
    if found.shape != (len(trajectories),):
        raise SettingError(
            f"train.reward: {name} gave numbers of shape {tuple(found.shape)} for "
            f"{len(trajectories)} answers; it must give one for each"
        )
    for number in found.float().isinf().nonzero()[:1, 0].tolist():
        said = str(trajectories[number].messages[-1]["content"])
        raise SettingError(
            f"train.reward: {name} is {float(found[number])} for the answer {said[:40]!r}; "
            "it must be a finite number, or nan where it cannot score an answer"
        )
    return found.tolist()
