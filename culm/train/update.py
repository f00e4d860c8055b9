"""The second half of a step: from gradients to new weights.

gradients --> unscale (fp16) --> norm, clip --> judge (the trainer) --> optimizer
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, cast

import torch
from torch import nn

from culm.dtensor import local_shard
from culm.optim.rule import Group, RuleOptimizer
from culm.parallel.parallelize import Parallel
from culm.parallel.phases import phase
from culm.parallel.ranks import Ranks
from culm.parallel.sharded import is_sharded
from culm.seed import keyed_integer
from culm.train.loss_scale import LossScale

ClipBy = Literal["model", "group"]


def peak_rates(optimizer: torch.optim.Optimizer, ranks: Ranks = Ranks()) -> dict[str, float]:
    """Of each group of all ranks, by name. Ranks of a pipeline have groups of their own, so every
    rank calls it.
    """
    groups = optimizer.param_groups
    own = {group.get("name", "all"): group["lr"] for group in groups}
    return {name: rate for found in ranks.everyone(own) for name, rate in found.items()}


class Update:
    """Clips the gradients of an objective on its ranks, and steps its optimizer.

    clip: maximum gradient norm; None: no limit. clip_by: whether that is the norm of the model, or
    of each group of the optimizer. seed: of random numbers (rounding), which are keyed by seed and
    step, so that a resumed run gets the same ones. loss_scale: of fp16. ratio_every: steps after
    which `update_ratio` is measured; None: never. peaks: the peak rates of all groups, by name,
    where other ranks have other groups.
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
        peaks: Mapping[str, float] | None = None,
    ) -> None:
        self.parallel, self.optimizer, self.seed = parallel, optimizer, seed
        self.clip = math.inf if clip is None else clip
        self.loss_scale, self.ratio_every = loss_scale, ratio_every
        parameters = [p for p in parallel.objective.parameters() if p.requires_grad]
        groups = [group["params"] for group in optimizer.param_groups]
        self.clipped = [parameters] if clip_by == "model" else groups
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.peaks = peak_rates(optimizer) if peaks is None else peaks

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
        with phase("clip", self.parallel.ranks.pulse):
            return math.hypot(*(self.parallel.clip(part, self.clip) for part in self.clipped))

    def overflow(self, step: int, loss: float, norm: float) -> str | None:
        """Why the update of a step (from 1) is left out, if its gradients overflowed in fp16.

        A loss that is not finite is no matter of its scale.

        loss, norm: the same on all ranks.
        """
        if self.loss_scale is None or not math.isfinite(loss):
            return None
        return self.loss_scale.judge(step, norm)

    @property
    def facts(self) -> dict[str, float]:
        """Metrics of the loss scale after the step, where there is one."""
        scale = self.loss_scale
        return {} if scale is None else {"loss_scale": scale.value, "overflows": scale.overflows}

    def apply(self, number: int) -> dict[str, float]:
        """Update the weights in step `number` (from 0); gives what was measured of the update."""
        # Copies of a weight must be rounded alike on all ranks, shards each in its own way.
        shard = self.parallel.ranks.shard if is_sharded(self.parallel.objective) else 0
        torch.manual_seed(keyed_integer(self.seed, "update", number, shard))
        with phase("optimizer", self.parallel.ranks.pulse):
            if not self._measures(number):
                self.optimizer.step()
                return {}
            ratio = UpdateRatio(self.parallel)
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    with ratio.of(parameter):
                        cast(RuleOptimizer, self.optimizer).update(group, [parameter])
            return ratio.facts()

    def during_backward(self, number: int) -> AbstractContextManager[None]:
        """Around the gradients of step `number` (from 0)."""
        return nullcontext()

    def reset(self) -> None:
        """Drop the state of the optimizer: the next update is as its first one."""
        self.optimizer.state.clear()

    def clear(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def _measures(self, number: int) -> bool:
        return self.ratio_every is not None and (number + 1) % self.ratio_every == 0


class UpdateRatio:
    """The norm of an update over the norm of the weights before it.

    One parameter after the other, so that a copy of one alone is in memory.
    """

    def __init__(self, parallel: Parallel) -> None:
        self._parallel = parallel
        self._changes, self._weights = parallel.norm(), parallel.norm()

    @contextmanager
    def of(self, parameter: nn.Parameter) -> Iterator[None]:
        """Around the update of a parameter."""
        if not self._parallel.counts(parameter):
            yield
            return
        before = parameter.detach().to(torch.float32, copy=True)
        self._weights.add([before])
        yield
        self._changes.add([before.sub_(parameter.detach())])

    def facts(self) -> dict[str, float]:
        """update_ratio; nothing where all weights are 0. Every rank calls it."""
        moved, size = (n.total(self._parallel.device) for n in (self._changes, self._weights))
        return {"update_ratio": moved / size} if size else {}


class UpdateInBackward(Update):
    """Updates each parameter in the backward as soon as its gradient is complete, and drops the
    gradient: the memory of one gradient in place of all (LOMO, arXiv 2306.09782).

    So the gradients are never together: no clipping, no second micro-batch, no ranks that add
    theirs, and a step that is not finite has changed the weights before anybody knows.
    """

    def __init__(
        self,
        parallel: Parallel,
        optimizer: RuleOptimizer,
        *,
        seed: int = 0,
        ratio_every: int | None = None,
    ) -> None:
        super().__init__(parallel, optimizer, clip=None, seed=seed, ratio_every=ratio_every)
        self._number: int | None = None
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._index = {parameter: index for index, parameter in enumerate(parameters)}
        optimizer.in_backward(self._learn)

    @contextmanager
    def during_backward(self, number: int) -> Iterator[None]:
        """Gradients that come outside of it are dropped, as in a trial."""
        self._number, self._norm = number, self.parallel.norm()
        self._ratio = UpdateRatio(self.parallel) if self._measures(number) else None
        try:
            yield
        finally:
            self._number = None

    def norm(self) -> float:
        """Of the gradients that were there."""
        return self._norm.total(self.parallel.device)

    def apply(self, number: int) -> dict[str, float]:
        """All is done; gives what was measured."""
        return {} if self._ratio is None else self._ratio.facts()

    def _learn(self, group: Group, parameter: nn.Parameter) -> None:
        if self._number is not None:
            assert parameter.grad is not None
            self._norm.add([parameter.grad])
            torch.manual_seed(
                keyed_integer(self.seed, "update", self._number, self._index[parameter])
            )
            measured = self._ratio.of(parameter) if self._ratio else nullcontext()
            with phase("optimizer", self.parallel.ranks.pulse), measured:
                cast(RuleOptimizer, self.optimizer).update(group, [parameter])
        parameter.grad = None
