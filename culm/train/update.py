"""The second half of a step: from gradients to new weights.

gradients --> unscale (fp16) --> norm, clip --> judge (the trainer) --> optimizer
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from culm.dtensor import local_shard
from culm.optim.rule import RuleOptimizer
from culm.parallel.parallelize import Parallel
from culm.parallel.phases import phase
from culm.parallel.sharded import is_sharded
from culm.seed import keyed_integer
from culm.train.loss_scale import LossScale

ClipBy = Literal["model", "group"]


class Update:
    """Clips the gradients of an objective on its ranks, and steps its optimizer.

    clip: maximum gradient norm; None: no limit. clip_by: whether that is the norm of the model, or
    of each group of the optimizer. seed: of random numbers (rounding), which are keyed by seed and
    step, so that a resumed run gets the same ones. loss_scale: of fp16. ratio_every: steps after
    which `update_ratio` is measured; None: never.
    """

    def __init__(
        self,
        parallel: Parallel,
        optimizer: torch.optim.Optimizer,
        *,
        clip: float | None = 1.0,
        clip_by: ClipBy = "model",
        seed: int = 0,
        loss_scale: LossScale | None = None,
        ratio_every: int | None = None,
    ) -> None:
        self.parallel, self.optimizer, self.seed = parallel, optimizer, seed
        self.clip = math.inf if clip is None else clip
        self.loss_scale, self.ratio_every = loss_scale, ratio_every
        parameters = [p for p in parallel.objective.parameters() if p.requires_grad]
        groups = [group["params"] for group in optimizer.param_groups]
        self.clipped = [parameters] if clip_by == "model" else groups
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.peaks: dict[str, float] = {}  # of all ranks: those of a pipeline have other names
        names = [group.get("name", "all") for group in optimizer.param_groups]
        for found in parallel.ranks.everyone(list(zip(names, self.peak_rates, strict=True))):
            for name, peak in found:
                self.peaks.setdefault(name, peak)

    def set_rates(self, factor: float) -> dict[str, float]:
        """The learning rate of each group of parameters in this step, by name.

        factor: of the peak rates.
        """
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor
        return {name: peak * factor for name, peak in self.peaks.items()}

    @property
    def scale(self) -> float:
        """What the loss is multiplied by before the backward."""
        return 1.0 if self.loss_scale is None else self.loss_scale.value

    def norm(self) -> float:
        """Unscale and clip the gradients; gives their norm before they are clipped."""
        if self.loss_scale is not None:
            for parameter in self.parallel.objective.parameters():
                if parameter.grad is not None:
                    local_shard(parameter.grad).div_(self.scale)
        with phase("clip"):
            return math.hypot(*(self.parallel.clip(part, self.clip) for part in self.clipped))

    def overflow(self, step: int, norm: float) -> str | None:
        """Why the update of a step (from 1) is left out, if its gradients overflowed in fp16.

        norm: the same on all ranks.
        """
        return None if self.loss_scale is None else self.loss_scale.judge(step, norm)

    @property
    def facts(self) -> dict[str, float]:
        """Metrics of the loss scale, where there is one."""
        scale = self.loss_scale
        return {} if scale is None else {"loss_scale": scale.value, "overflows": scale.overflows}

    def apply(self, number: int) -> dict[str, float]:
        """Update the weights in step `number` (from 0); gives what was measured of the update."""
        # Copies of a weight must be rounded alike on all ranks, shards each in its own way.
        shard = self.parallel.ranks.shard if is_sharded(self.parallel.objective) else 0
        torch.manual_seed(keyed_integer(self.seed, "update", number, shard))
        measures = self.ratio_every is not None and (number + 1) % self.ratio_every == 0
        with phase("optimizer"):
            if measures:
                return self._measured()
            self.optimizer.step()
        return {}

    def clear(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def _measured(self) -> dict[str, float]:
        """update_ratio: the norm of the update over the norm of the weights before it.

        One parameter after the other, so that the earlier weights of one alone are in memory.
        """
        optimizer, parallel = self.optimizer, self.parallel
        assert isinstance(optimizer, RuleOptimizer)
        changes, weights = parallel.norm(), parallel.norm()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                before = parameter.detach().clone()
                optimizer.update(group, [parameter])
                if parallel.counts(parameter):
                    changes.add([parameter.detach().float() - before.float()])
                    weights.add([before.float()])
        moved, size = changes.total(parallel.device), weights.total(parallel.device)
        return {"update_ratio": moved / size} if size else {}
