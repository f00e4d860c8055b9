"""Adafactor: squares of a matrix's gradient by one number per row and column (arXiv 1804.04235)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from pydantic import NegativeFloat, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from culm.dtensor import full_tensor, like
from culm.optim.groups import groups_of, trainable
from culm.optim.optimizer import OptimizerConfig
from culm.optim.rule import Group, Layout, Rule


class Adafactor(OptimizerConfig):
    """As torch.optim.Adafactor. rate: as a share of a parameter's root mean square; it falls with
    the root of the step where that is less. least: root mean square that the rate is a share of,
    where the parameter's is smaller.

    The rate is an upper limit, as schedules and multiples of it are.

    decay: exponent of the step, by which older squares weigh less. threshold: an update with a
    greater root mean square is scaled down to it. weight_decay: as in AdamW.
    """

    kind: Literal["adafactor"] = "adafactor"
    rate: PositiveFloat = 1e-2
    decay: NegativeFloat = -0.8
    least: PositiveFloat = 1e-3
    threshold: PositiveFloat = 1.0
    weight_decay: NonNegativeFloat = 0.0

    def groups(self, module: nn.Module) -> list[Group]:
        rule = AdafactorRule(self.decay, self.least, self.threshold)
        return groups_of(module, trainable(module), rule, self.rate, self.weight_decay, 0.0)


@dataclass(frozen=True)
class AdafactorRule(Rule):
    """A shard has no root mean square of its own: every rank computes the whole update."""

    decay: float
    least: float
    threshold: float

    @property
    def layout(self) -> Mapping[str, Layout]:
        return dict.fromkeys(("step", "rows", "columns"), "replicated")

    def init(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        shape, new = tuple(parameter.shape), partial(_zeros, parameter)
        rows = new(*shape[:-1], 1) if len(shape) > 1 else new(*shape)
        columns = new(*shape[:-2], 1, shape[-1]) if len(shape) > 1 else new(0)
        return {"step": new(), "rows": rows, "columns": columns}

    def update(
        self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: Group
    ) -> None:
        gradient, weights = full_tensor(gradient), full_tensor(parameter.detach())
        step = state["step"].add_(1)
        new, tiny = step**self.decay, torch.finfo(gradient.dtype).eps
        if gradient.dim() > 1:
            rows = state["rows"].lerp_(gradient.square().mean(-1, keepdim=True), new)
            columns = state["columns"].lerp_(gradient.square().mean(-2, keepdim=True), new)
            squares = rows @ columns / rows.mean(-2, keepdim=True).clamp_(min=tiny)
        else:
            squares = state["rows"].lerp_(gradient.square(), new)
        direction = squares.clamp(min=tiny * tiny).rsqrt_() * gradient
        rate = step.rsqrt().clamp_(max=group["lr"]) * _rms(weights).clamp(min=self.least)
        change = direction * (rate / (_rms(direction) / self.threshold).clamp(min=1.0))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(like(change, parameter))


def _zeros(parameter: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()
