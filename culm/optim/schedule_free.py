"""Schedule-Free AdamW: an average of the weights in place of a falling rate (arXiv 2405.15682).

Three sequences: z takes the steps of AdamW; x is a weighted average of all z; gradients are taken
at y, between the two. The parameters are y while they learn; x is evaluated and saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveFloat, model_validator
from torch import Tensor, nn

from culm.optim.adamw import AdamSettings
from culm.optim.groups import trainable
from culm.optim.rule import ElementwiseRule, Group, Layout


class ScheduleFree(AdamSettings):
    """betas: the first is the share of x in y. Give it the schedule `constant`, with a warm-up."""

    kind: Literal["schedule_free"] = "schedule_free"
    rate: PositiveFloat = 2e-3

    @model_validator(mode="after")
    def _averages(self) -> ScheduleFree:
        if not self.betas[0]:
            raise ValueError("betas: the first is the share of x in y; it is above 0")
        return self

    def groups(self, module: nn.Module) -> list[Group]:
        return self._groups(module, trainable(module), ScheduleFreeRule(self.betas))


@dataclass(frozen=True)
class ScheduleFreeRule(ElementwiseRule):
    """Steps of greater rates weigh more in the average: by the square of the greatest so far."""

    betas: tuple[float, float]

    @property
    def layout(self) -> Mapping[str, Layout]:
        return {
            "step": "replicated", "greatest_rate": "replicated", "weights": "replicated",
            "z": "parameter", "exp_avg_sq": "parameter",
        }  # fmt: skip

    def init(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        numbers = {
            name: torch.zeros((), device=parameter.device)
            for name in ("step", "greatest_rate", "weights")
        }
        z = parameter.detach().clone()
        return {**numbers, "z": z, "exp_avg_sq": torch.zeros_like(parameter)}

    def change(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Group
    ) -> None:
        (beta, beta_sq), rate = self.betas, group["lr"]
        step, squares, z = state["step"].add_(1), state["exp_avg_sq"], state["z"]
        squares.mul_(beta_sq).addcmul_(gradient, gradient, value=1 - beta_sq)
        scale = (squares / (1 - beta_sq**step)).sqrt_().add_(group["eps"])
        move = gradient / scale + group["weight_decay"] * parameter
        weight = state["greatest_rate"].clamp_(min=rate) ** 2
        share = weight / state["weights"].add_(weight)
        parameter.lerp_(z, share).add_(move * (rate * (beta * (1 - share) - 1)))
        z.sub_(move, alpha=rate)

    def averaged(self, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> Tensor:
        """x = (y - (1 - beta) z) / beta."""
        return parameter.lerp(state["z"], 1 - 1 / self.betas[0]) if state else parameter
