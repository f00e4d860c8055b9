"""The linear layer of every part: weights in one precision, matmuls in that of the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from culm.dtensor import local_shard
from culm.model.grouped import grouped

# How a layer of a module is divided over tensor-parallel ranks: its outputs (the columns of x W^T),
# or its inputs (the rows of W^T).
Split = Literal["columns", "rows"]


@runtime_checkable
class Divisible(Protocol):
    """A layer of several, such as one with an adapter, that tensor parallelism can divide."""

    def divided(self, split: Split) -> Mapping[str, Split]:
        """How its layers and parameters are divided, by attribute, if it is divided so.

        Raises:
            SettingError: it cannot be.
        """
        ...


class Linear(nn.Linear):
    """x W^T (+ b), with weights cast to the dtype of x; of sharded weights, the rank's own part.

    Training keeps fp32 weights and sends bf16 activations through; the cast is explicit here
    instead of ambient. `residual` marks a projection that writes into the residual stream, whose
    initial scale shrinks with depth (`culm.model.init`).
    """

    def __init__(
        self, inputs: int, outputs: int, bias: bool = False, residual: bool = False
    ) -> None:
        super().__init__(inputs, outputs, bias)
        self.residual = residual

    def reset_parameters(self) -> None:
        """Nothing: `culm.model.init` initialises weights once, by name."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else local_shard(self.bias).to(x.dtype)
        return F.linear(x, local_shard(self.weight).to(x.dtype), bias)

    def matrix(self) -> Tensor:
        """The weights that x is multiplied by, (outputs, inputs). Layers that replace this one have
        it too: dequantised, or with the adapter merged; without rounding of x (W8A8).
        """
        return self.weight


class GroupedLinear(nn.Module):
    """A linear layer for each expert; x: (M, inputs), sorted by expert -> (M, outputs).

    weight: (experts, outputs, inputs), bias: (experts, outputs).
    """

    def __init__(
        self, experts: int, inputs: int, outputs: int, bias: bool = False, residual: bool = False
    ) -> None:
        super().__init__()
        self.experts, self.in_features, self.out_features = experts, inputs, outputs
        self.residual = residual
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(experts, outputs)) if bias else None

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """ends: (experts,) int32, the row after the last one of each expert."""
        out = grouped(x, local_shard(self.weight).to(x.dtype), ends)
        if self.bias is None:
            return out
        experts = torch.searchsorted(ends, torch.arange(len(x), device=x.device), right=True)
        return out + local_shard(self.bias).to(x.dtype)[experts]
