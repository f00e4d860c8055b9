"""AdamW (arXiv 1711.05101), by torch's fused kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.optim.adamw import adamw

from culm.optim.groups import groups_of, trainable
from culm.optim.rule import Group, Layout, OptimizerConfig, Rule, RuleOptimizer


class AdamW(OptimizerConfig):
    """rate: the peak learning rate of the schedule. betas, eps, weight_decay: as in torch.

    In a model with a scaling rule they are those of its base (`culm.model.scaling`).
    """

    kind: Literal["adamw"] = "adamw"
    rate: PositiveFloat = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1

    def build(self, module: nn.Module) -> RuleOptimizer:
        groups = groups_of(module, trainable(module), self.rate, self.weight_decay, self.eps)
        return RuleOptimizer([group | {"rule": AdamWRule(self.betas)} for group in groups])


@dataclass(frozen=True)
class AdamWRule(Rule):
    """Moments in the precision of the parameter, as torch.optim.AdamW keeps them."""

    layout: ClassVar[Mapping[str, Layout]] = {
        "step": "replicated", "exp_avg": "parameter", "exp_avg_sq": "parameter",
    }  # fmt: skip
    betas: tuple[float, float]

    def init(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    def update(
        self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: Group
    ) -> None:
        self.update_all([parameter], [gradient], [state], group)

    def update_all(
        self,
        parameters: Sequence[nn.Parameter],
        gradients: Sequence[Tensor],
        states: Sequence[dict[str, Tensor]],
        group: Group,
    ) -> None:
        if parameters[0].is_meta:  # the kernel knows no meta device, and a plan counts matmuls only
            return
        adamw(
            list(parameters), list(gradients),
            [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states],
            [], [state["step"] for state in states], fused=True, amsgrad=False,
            beta1=self.betas[0], beta2=self.betas[1], lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
