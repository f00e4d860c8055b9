"""Riemannian SGD and Adam (arXiv 1810.00760): steps along geodesics, for points of a manifold.

    gradient h of the manifold at x --> direction v --> x <- exp_x(-rate v), and the momentum is
    moved to the new point by parallel transport

Parameters that hold no points take the steps of SGD or AdamW. For points of Euclidean space the
rules are SGD and Adam, so a Euclidean twin learns by the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor, nn

from culm.dtensor import local_shard
from culm.hyperbolic.manifold import Manifold, manifolds_of
from culm.optim.adamw import AdamWRule, Beta
from culm.optim.groups import groups_of, trainable
from culm.optim.optimizer import OptimizerConfig
from culm.optim.rule import Group, Layout, Rule
from culm.optim.sgd import SGDRule


class Riemannian(OptimizerConfig):
    """weight_decay: of parameters that hold no points; points have no direction to shrink in."""

    weight_decay: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _no_average(self) -> Riemannian:
        if self.ema is not None:
            raise ValueError("ema: an average of points is off their manifold; leave it out")
        return self

    def _groups(
        self, module: nn.Module, rule: Callable[[Manifold], Rule], flat: Rule, eps: float
    ) -> list[Group]:
        """Points of each manifold with the rule of it, and the rest with `flat`."""
        known, named = manifolds_of(module), trainable(module)
        found = []
        for manifold in dict.fromkeys(known.values()):
            own = [one for one in named if known.get(one[1]) is manifold]
            groups = groups_of(module, own, rule(manifold), self.rate, 0.0, eps)
            found += [group | {"name": "points"} for group in groups]
        rest = [one for one in named if one[1] not in known]
        return found + groups_of(module, rest, flat, self.rate, self.weight_decay, eps)


class RiemannianSGD(Riemannian):
    """Without momentum, as arXiv 1705.08039; its steps there are straight, here geodesics."""

    kind: Literal["riemannian_sgd"] = "riemannian_sgd"
    rate: PositiveFloat = 0.3

    def groups(self, module: nn.Module) -> list[Group]:
        return self._groups(module, RiemannianSGDRule, SGDRule(0.0, False), 0.0)


class RiemannianAdam(Riemannian):
    """betas, eps: as in AdamW; the second moment is one number a point, the squared length of its
    gradient. In flat space it is one for each coordinate, as in Adam.
    """

    kind: Literal["riemannian_adam"] = "riemannian_adam"
    rate: PositiveFloat = 1e-2
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8

    def groups(self, module: nn.Module) -> list[Group]:
        def rule(manifold: Manifold) -> Rule:
            return RiemannianAdamRule(manifold, self.betas)

        return self._groups(module, rule, AdamWRule(self.betas), self.eps)


class PointsRule(Rule):
    """A rule that treats each point, a row of a parameter, alone: each rank updates its shard."""

    def update(
        self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: Group
    ) -> None:
        shards = {name: local_shard(value) for name, value in state.items()}
        self.move(local_shard(parameter), local_shard(gradient), shards, group)

    def move(self, x: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Group) -> None:
        """Move the points x (N, D) that a rank holds, and their states, in place.

        gradient: (N, D) partial derivatives.
        """
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class RiemannianSGDRule(PointsRule):
    """Stores nothing."""

    manifold: Manifold

    @property
    def layout(self) -> Mapping[str, Layout]:
        return {}

    def init(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {}

    def move(self, x: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Group) -> None:
        x.copy_(self.manifold.exp(x, self.manifold.gradient(x, gradient) * -group["lr"]))


@dataclass(frozen=True, eq=False)
class RiemannianAdamRule(PointsRule):
    """All points move in every step, also those without a gradient in it, as in Adam."""

    manifold: Manifold
    betas: tuple[float, float]

    @property
    def layout(self) -> Mapping[str, Layout]:
        return {"step": "replicated", "exp_avg": "parameter", "exp_avg_sq": "parameter"}

    def init(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(self.manifold.squares(parameter, parameter)),
        }

    def move(self, x: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Group) -> None:
        (beta, beta_sq), step = self.betas, float(state["step"].add_(1))
        own = self.manifold.gradient(x, gradient)
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(own, 1 - beta)
        square.lerp_(self.manifold.squares(x, own), 1 - beta_sq)
        scale = (square / (1 - beta_sq**step)).sqrt_().add_(group["eps"])
        to = self.manifold.exp(x, mean / scale * (-group["lr"] / (1 - beta**step)))
        mean.copy_(self.manifold.transport(x, to, mean))
        x.copy_(to)
