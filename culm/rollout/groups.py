"""Completions of one prompt with their rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from culm.parallel.ranks import Ranks
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


def metrics_of(
    groups: Sequence[Group],
    parts: Sequence[str],
    replaced: Mapping[str, int],
    compared: bool,
    ranks: Ranks,
    device: torch.device | str,
) -> dict[str, float]:
    """Means over all that every rank played, also what was replaced.

    parts: names of rewards that are shown by themselves. replaced: completions of this rank to
    another prompt than that of their number, by the metric of the reason. compared: whether only
    the completions of a group are compared with each other, so that one of equal rewards teaches
    nothing.
    """
    trajectories = [one for group in groups for one in group.trajectories]
    rewards = [reward for group in groups for reward in group.rewards]
    values: dict[str, list[float]] = {
        "reward": rewards,
        "completion_tokens": [one.sampled for one in trajectories],
        "stopped": [one.finish == "stop" for one in trajectories],
        "unscored": list(map(math.isnan, rewards)),
    }
    for name in parts:
        values[f"reward_{name}"] = [one for group in groups for one in group.parts[name]]
    if compared and len(groups[0].trajectories) > 1:
        values["mixed_reward_groups"] = [group.mixed for group in groups]
    known = {name: [x for x in of if not math.isnan(x)] for name, of in values.items()}
    sums = [(sum(of), len(of)) for of in known.values()]
    sums += [(count, len(trajectories)) for count in replaced.values()]
    flat = [float(number) for pair in sums for number in pair]
    totals = iter(ranks.sum(flat, device))
    return {name: next(totals) / max(next(totals), 1) for name in (*known, *replaced)}
