"""A curriculum of rollouts: questions that the policy sometimes answers are asked.

    pass rate    a moving average of the mean score of each question's group
    range        a question outside of it is passed over for another, as one that is always or
                 never answered teaches nothing (the filter of DAPO, without sampling first)
    recheck      some are asked all the same, since the policy changes

What is asked depends on the number of its group and on the rates, which all ranks share and
checkpoints hold.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field, model_validator
from torch import Tensor

from culm.config import Config
from culm.parallel.ranks import Ranks
from culm.rollout.environment import FAR, Episode, Fitting
from culm.rollout.groups import Group
from culm.seed import keyed

TRIES = 100  # questions in a row that may be outside of the range
KEYS, VALUES = "pass_rate.questions", "pass_rate.values"


class PassRange(Config):
    """low, high: questions whose running pass rate lies between are asked, and new ones.

    newest: weight of the newest group in the moving average. recheck: probability that a question
        outside of the range is asked all the same. reward: name of the reward, from 0 to 1, whose
        mean over a group is its pass rate.
    """

    low: float = Field(0.2, ge=0, le=1)
    high: float = Field(0.8, ge=0, le=1)
    newest: float = Field(0.5, gt=0, le=1)
    recheck: float = Field(0.1, gt=0, le=1)
    reward: str = "task"

    @model_validator(mode="after")
    def _ordered(self) -> PassRange:
        if self.low >= self.high:
            raise ValueError(f"low: {self.low} is not below high={self.high}")
        return self


class PassRates:
    """The running pass rate of every question that was asked; without a range, all are asked."""

    def __init__(self, config: PassRange | None, seed: int) -> None:
        self.config, self._seed = config, seed
        self.rates: dict[int, float] = {}

    def place(self, fitting: Fitting, index: int, seed: int) -> tuple[int, int]:
        """Where the question to ask in place of question `index` is, and how many were passed over.

        If many in a row are outside of the range, the first one is asked.
        """
        if self.config is None:
            return index, 0
        for passed in range(TRIES):
            place = index + passed * FAR
            if self._admits(fitting.reset(place, seed)[0], index, passed):
                return place, passed
        return index, TRIES

    def update(self, groups: Sequence[Group], ranks: Ranks) -> None:
        """Learn from all that every rank played, in the order of the numbers of groups."""
        if (config := self.config) is None:
            return
        own = []
        for group in groups:
            known = [one for one in group.parts[config.reward] if not math.isnan(one)]
            if known:
                first = group.trajectories[0]
                own.append((first.group, question_key(first.episode), sum(known) / len(known)))
        for _, key, rate in sorted(entry for part in ranks.gather(own) for entry in part):
            before = self.rates.get(key, rate)
            self.rates[key] = before + config.newest * (rate - before)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        if not self.rates:
            return {}
        values = torch.tensor(list(self.rates.values()), dtype=torch.float64)
        return {KEYS: torch.tensor(list(self.rates)), VALUES: values}

    def restore(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take the rates of `state` up again, and give the rest of it."""
        if KEYS in state:
            self.rates = dict(zip(state[KEYS].tolist(), state[VALUES].tolist(), strict=True))
        return {name: value for name, value in state.items() if name not in (KEYS, VALUES)}

    def _admits(self, episode: Episode, index: int, passed: int) -> bool:
        assert self.config is not None
        rate = self.rates.get(question_key(episode))
        if rate is None or self.config.low <= rate <= self.config.high:
            return True
        return keyed(self._seed, "recheck", index, passed).random() < self.config.recheck


def question_key(episode: Episode) -> int:
    """63 bits of a question: of its prompt, its task and its answer."""
    fields = episode.fields
    facts = [list(episode.prompt), str(fields.get("task")), str(fields.get("answer"))]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
