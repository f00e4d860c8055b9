"""Stochastic gradient descent with momentum, as torch.optim.SGD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor, nn

from culm.optim.adamw import Beta
from culm.optim.groups import groups_of, trainable
from culm.optim.optimizer import OptimizerConfig
from culm.optim.rule import ElementwiseRule, Group, Layout


class SGD(OptimizerConfig):
    """momentum: of the gradients. nesterov: the update looks ahead along it. weight_decay: is added
    to the gradient, times the weights.
    """

    kind: Literal["sgd"] = "sgd"
    rate: PositiveFloat = 0.1
    momentum: Beta = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _has_momentum(self) -> SGD:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: it needs a momentum above 0")
        return self

    def groups(self, module: nn.Module) -> list[Group]:
        rule = SGDRule(self.momentum, self.nesterov)
        return groups_of(module, trainable(module), rule, self.rate, self.weight_decay, 0.0)


@dataclass(frozen=True)
class SGDRule(ElementwiseRule):
    """Without momentum it stores nothing."""

    momentum: float
    nesterov: bool

    @property
    def layout(self) -> Mapping[str, Layout]:
        return {"momentum": "parameter"} if self.momentum else {}

    def init(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(parameter)} if self.momentum else {}

    def change(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Group
    ) -> None:
        gradient = gradient.add(parameter, alpha=group["weight_decay"])
        if self.momentum:
            moving = state["momentum"].mul_(self.momentum).add_(gradient)
            gradient = gradient.add(moving, alpha=self.momentum) if self.nesterov else moving
        parameter.add_(gradient, alpha=-group["lr"])
