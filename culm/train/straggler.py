"""A rank that is slower than the others, and so slows them all, is named."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

from pydantic import Field, PositiveInt
from torch import nn

from culm.config import Config
from culm.log import say
from culm.parallel.ranks import Ranks
from culm.parallel.sharded import is_sharded
from culm.train.trainer import Timing

LEAST = 0.005  # seconds a step that a rank must lose the others


class StragglerConfig(Config):
    """factor: a rank that takes this many times as long as the median of the others is named in
        the log and in the metrics `slowest_rank` and `slowest_rank_factor`. every_steps: how often
        ranks compare their means.

    What is compared is the time that a rank spends on its own: until its data are there, and in
    forwards; of weights that are sharded, whose forwards wait for other ranks, until its data are
    there.
    """

    factor: float = Field(2.0, gt=1)
    every_steps: PositiveInt = 20


class Stragglers:
    """Measures what this rank does on its own in each step."""

    def __init__(self, settings: StragglerConfig, objective: nn.Module, ranks: Ranks) -> None:
        self.settings, self.ranks = settings, ranks
        self._seconds, self._forward, self._began = list[float](), 0.0, 0.0
        if ranks.processes > 1 and not is_sharded(objective):
            objective.register_forward_pre_hook(self._begin)
            objective.register_forward_hook(self._end)

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._forward += time.perf_counter() - self._began

    def __call__(self, timing: Timing) -> Mapping[str, float]:
        """Metrics of the slowest rank, every so many steps; every rank calls it."""
        if self.ranks.processes == 1:
            return {}
        self._seconds.append(timing.fetched + self._forward)
        self._forward = 0.0
        if len(self._seconds) < self.settings.every_steps:
            return {}
        means = self.ranks.everyone(fmean(self._seconds))
        self._seconds = []
        slowest = max(range(len(means)), key=means.__getitem__)
        usual = median(mean for rank, mean in enumerate(means) if rank != slowest)
        factor = means[slowest] / max(usual, 1e-9)
        if factor > self.settings.factor and means[slowest] - usual > LEAST:
            say(
                f"Step {timing.step}: rank {slowest} is slow: {means[slowest]:.3f} s a step on its "
                f"own, the others {usual:.3f} s; all ranks wait for it."
            )
        return {"slowest_rank": float(slowest), "slowest_rank_factor": factor}
