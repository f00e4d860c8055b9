"""Muon: momentum whose direction is orthogonalised (Jordan 2024; arXiv 2502.16982).

Hidden matrices, those of experts too, take orthogonalised steps; embeddings, heads, norms and
adapters take AdamW steps, in the same optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from culm.dtensor import full_tensor, like
from culm.model.trunk import Trunk
from culm.optim.adamw import AdamWRule, Beta
from culm.optim.groups import groups_of, hidden_matrices, trainable
from culm.optim.optimizer import OptimizerConfig
from culm.optim.rule import Group, Layout, Rule

# Quintic whose iteration pushes singular values towards one from anywhere in (0, 1].
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(OptimizerConfig):
    """rate: of hidden matrices; an update has the root mean square 0.2 * rate, about that of AdamW
    (Moonlight scaling), so that rates of AdamW carry over. adamw_ratio: the rate of everything
    else, as a multiple of it. momentum: of hidden matrices. weight_decay: as in AdamW.
    betas, eps: of AdamW, which updates everything else.

    In a model with a scaling rule they are those of its base; the rate of hidden matrices falls
    with the root of the width (`culm.model.scaling`).
    """

    kind: Literal["muon"] = "muon"
    rate: PositiveFloat = 3e-3
    momentum: float = Field(0.95, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 0.1
    adamw_ratio: PositiveFloat = 1.0
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8

    def groups(self, module: nn.Module) -> list[Group]:
        hidden, named = hidden_matrices(module), trainable(module)
        matrices = [(n, p) for n, p in named if p in hidden]
        rest = [(n, p) for n, p in named if p not in hidden]
        muon, adamw = MuonRule(self.momentum, _precision(module)), AdamWRule(self.betas)
        decay, eps, other_rate = self.weight_decay, self.eps, self.rate * self.adamw_ratio
        return [
            *groups_of(module, matrices, muon, self.rate, decay, eps, hidden),
            *groups_of(module, rest, adamw, other_rate, decay, eps),
        ]


@dataclass(frozen=True)
class MuonRule(Rule):
    """precision: of the iteration that orthogonalises."""

    momentum: float
    precision: torch.dtype

    @property
    def layout(self) -> Mapping[str, Layout]:
        return {"momentum": "parameter"}

    def init(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(parameter)}

    def update(
        self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: Group
    ) -> None:
        state["momentum"].lerp_(gradient, 1 - self.momentum)
        nesterov = gradient.lerp(state["momentum"], self.momentum)
        scale = 0.2 * max(parameter.shape[-2:]) ** 0.5
        # A shard has no direction of its own: every rank orthogonalises the whole matrix.
        direction = orthogonalize(full_tensor(nesterov).to(self.precision)).to(parameter.dtype)
        change = like(direction, parameter) * scale
        if parameter.ndim > 2:  # the momentum of an idle expert is small, its direction is not
            change = change * (gradient.abs().sum((-2, -1), keepdim=True) > 0)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(change, alpha=-group["lr"])


def _precision(module: nn.Module) -> torch.dtype:
    """That of the model's activations: bf16 where this machine multiplies it fast. Gradients are
    too small for fp16.
    """
    found = next((m.dtype for m in module.modules() if isinstance(m, Trunk)), torch.float32)
    return torch.float32 if found == torch.float16 else found


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix; (..., R, C) fp32.

    Singular values end near 1 (0.7 to 1.2), which is all that the method needs: bf16 is enough.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = matrix if wide else matrix.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT
