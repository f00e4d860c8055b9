"""The score that the task itself gives: right or wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from culm.objective.objective import Load
from culm.rollout.environment import QuestionEpisode
from culm.rollout.reward.reward import RewardConfig, Score
from culm.rollout.trajectory import Trajectory
from culm.task.task import graded_together


class TaskScore(RewardConfig):
    """The score of the episode, 0 to 1."""

    kind: Literal["task"] = "task"

    def build(self, load: Load, seed: int) -> Score:
        return _scores


def _scores(trajectories: Sequence[Trajectory]) -> list[float]:
    """Of all replies to questions of one task together, since some tasks run a program for each."""
    found = [math.nan] * len(trajectories)
    tasks: dict[int, list[int]] = {}
    for place, one in enumerate(trajectories):
        if isinstance(one.episode, QuestionEpisode):
            tasks.setdefault(id(one.episode.task), []).append(place)
        else:
            found[place] = one.episode.score()
    for places in tasks.values():
        episodes = [
            e for at in places if isinstance(e := trajectories[at].episode, QuestionEpisode)
        ]
        given = [(episode.question, episode.reply) for episode in episodes]
        scores = graded_together(episodes[0].task, given)
        for place, score in zip(places, scores, strict=True):
            found[place] = score
    return found
