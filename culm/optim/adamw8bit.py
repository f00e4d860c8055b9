"""AdamW whose moments take 8 bits each (arXiv 2110.02861).

A square is never rounded to 0, which the paper's rounding to the nearest code allows: the step of a
weight whose gradient is small among others of its block would have any size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from culm.optim import blockwise
from culm.optim.adamw import AdamSettings
from culm.optim.rule import ElementwiseRule, Group, Layout

SMALLEST = 4096  # elements of a matrix whose states are quantised


class AdamW8bit(AdamSettings):
    """AdamW with the moments of hidden matrices in 8 bits; those of embeddings, heads and vectors
    stay in fp32.
    """

    kind: Literal["adamw8bit"] = "adamw8bit"

    def groups(self, module: nn.Module) -> list[Group]:
        rule = AdamW8bitRule(self.betas)
        return self.with_rule(module, rule, lambda matrix: matrix.numel() >= SMALLEST)


@dataclass(frozen=True)
class AdamW8bitRule(ElementwiseRule):
    """Moments are dequantised, updated and quantised again, one parameter after the other."""

    betas: tuple[float, float]

    @property
    def layout(self) -> Mapping[str, Layout]:
        moments = ("exp_avg", "exp_avg_scale", "exp_avg_sq", "exp_avg_sq_scale")
        return {"step": "replicated", **dict.fromkeys(moments, "parameter")}

    def init(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        first, second = blockwise.zeros(parameter), blockwise.zeros(parameter)
        return {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": first[0], "exp_avg_scale": first[1],
            "exp_avg_sq": second[0], "exp_avg_sq_scale": second[1],
        }  # fmt: skip

    def change(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Group
    ) -> None:
        (beta, beta_sq), gradient = self.betas, gradient.float()
        first, second = state["exp_avg"], state["exp_avg_sq"]
        scale, scale_sq = state["exp_avg_scale"], state["exp_avg_sq_scale"]
        mean = blockwise.dequantize(first, scale, signed=True).lerp_(gradient, 1 - beta)
        squares = blockwise.dequantize(second, scale_sq, signed=False)
        squares.mul_(beta_sq).addcmul_(gradient, gradient, value=1 - beta_sq)
        step = state["step"].add_(1)
        root = (squares / (1 - beta_sq**step)).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(mean / root * (group["lr"] / (1 - beta**step)))
        blockwise.quantize(mean, first, scale, signed=True)
        blockwise.quantize(squares, second, scale_sq, signed=False)
