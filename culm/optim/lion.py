"""Lion: steps by the sign of a momentum (arXiv 2302.06675). It stores one number per weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from culm.optim.adamw import Beta
from culm.optim.groups import groups_of, trainable
from culm.optim.optimizer import OptimizerConfig
from culm.optim.rule import ElementwiseRule, Group, Layout


class Lion(OptimizerConfig):
    """rate: 3 to 10 times lower than that of AdamW, since every weight moves by it.
    weight_decay: as many times higher. betas: of the step, and of the momentum that is stored.
    """

    kind: Literal["lion"] = "lion"
    rate: PositiveFloat = 1e-4
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    weight_decay: NonNegativeFloat = 1.0

    def groups(self, module: nn.Module) -> list[Group]:
        rule = LionRule(self.betas)
        return groups_of(module, trainable(module), rule, self.rate, self.weight_decay, 0.0)


@dataclass(frozen=True)
class LionRule(ElementwiseRule):
    """betas: of the step and of the momentum."""

    betas: tuple[float, float]

    @property
    def layout(self) -> Mapping[str, Layout]:
        return {"momentum": "parameter"}

    def init(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(parameter)}

    def change(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Group
    ) -> None:
        momentum = state["momentum"]
        direction = momentum.lerp(gradient, 1 - self.betas[0]).sign_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"])
        momentum.lerp_(gradient, 1 - self.betas[1])
