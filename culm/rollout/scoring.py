"""What completions earn: every reward of the settings, shaped, weighted and added."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from culm import log
from culm.config import SettingError
from culm.objective.objective import Load
from culm.parallel.ranks import Ranks
from culm.rollout.groups import Group
from culm.rollout.reward.reward import RewardConfig, named, scores_of
from culm.rollout.trajectory import Trajectory

SETTING = "train.reward"
EPS = 1e-8  # of a standard deviation, as for whitened advantages
Parts = dict[str, list[float]]  # what each reward gave, by its name


@dataclass(frozen=True)
class Scale:
    """mean, deviation: of a reward over a batch."""

    mean: float
    deviation: float


Scales = dict[str, Scale]  # of the whitened rewards


class Scoring:
    """The rewards of a run. shown: names of those that get a metric of their own."""

    def __init__(self, rewards: Iterable[RewardConfig], load: Load, seed: int) -> None:
        self.rewards = named(rewards)
        self._scores = {name: one.build(load, seed) for name, one in self.rewards.items()}
        shaped = any(one.whiten or one.clip is not None for one in self.rewards.values())
        self.shown = list(self.rewards) if len(self.rewards) > 1 or shaped else []

    def try_on(self, trajectory: Trajectory) -> None:
        """Have those score it that a plan tries.

        Raises:
            SettingError: one cannot.
        """
        for name, reward in self.rewards.items():
            if reward.tried:
                self._scores[name]([trajectory])

    def parts(self, trajectories: Sequence[Trajectory]) -> Parts:
        """What each reward gives, before it is shaped.

        Raises:
            SettingError: it fails, or gives something other than a number for each, or nan.
        """
        return {name: scores_of(name, score, trajectories) for name, score in self._scores.items()}

    def scales(self, parts: Parts, ranks: Ranks, device: torch.device | str) -> Scales:
        """Of the whitened rewards, over what all ranks have; so nothing is kept between steps."""
        found = {}
        for name, reward in self.rewards.items():
            if reward.whiten:
                known = [value for value in parts[name] if not math.isnan(value)]
                total, count = ranks.sum([sum(known), float(len(known))], device)
                mean = total / max(count, 1.0)
                (squares,) = ranks.sum([sum((value - mean) ** 2 for value in known)], device)
                found[name] = Scale(mean, math.sqrt(squares / max(count - 1.0, 1.0)))
        return found

    def totals(self, parts: Parts, scales: Scales) -> list[float]:
        """The sum of all rewards, shaped and weighted, of each trajectory."""
        shaped = []
        for name, reward in self.rewards.items():
            values = parts[name]
            if (scale := scales.get(name)) is not None:
                values = [(one - scale.mean) / (scale.deviation + EPS) for one in values]
            if (limit := reward.clip) is not None:
                values = [min(max(one, -limit), limit) for one in values]  # keeps nan
            shaped.append([reward.weight * one for one in values])
        return [sum(each) for each in zip(*shaped, strict=True)]


class Problems:
    """Says why completions could not be scored, each reason once; their share is a metric."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def check(self, groups: Sequence[Group], unscored: float, ranks: Ranks) -> None:
        """unscored: the share over all ranks.

        Raises:
            SettingError: nothing could be scored.
        """
        if not unscored:
            return
        lost = [
            one.problem or "a reward gave nan"
            for group in groups
            for one, reward in zip(group.trajectories, group.rewards, strict=True)
            if math.isnan(reward)
        ]
        reasons: Counter[str] = sum(map(Counter, ranks.gather(lost)), Counter())
        most, count = reasons.most_common(1)[0]
        if unscored == 1:
            raise SettingError(
                f"{SETTING}: none of the {reasons.total():,} completions of a rollout could be "
                f"scored; of {count:,}: {most}"
            )
        for reason, count in reasons.items():
            if reason not in self._said:
                log.say(f"{count:,} completions of this rollout are left out: {reason}.")
        self._said |= reasons.keys()
