"""The linear layers of experts with weights of few bits: each expert is a quantised layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from culm.model.linear import GroupedLinear, Linear

if TYPE_CHECKING:
    from culm.adapt.quantize.linear import QuantizedLinear


class QuantizedGrouped(nn.Module):
    """x: (M, inputs), sorted by expert -> (M, outputs), as `culm.model.linear.GroupedLinear`.

    Only experts that have rows are multiplied; their layers choose between the packed kernels and
    a dense product by the number of rows, as everywhere. bias: (experts, outputs).
    """

    def __init__(self, each: Sequence[QuantizedLinear], bias: Tensor | None) -> None:
        super().__init__()
        self.each = nn.ModuleList(each)
        self.out_features = each[0].out_features
        self.register_buffer("bias", bias)
        self.bias: Tensor | None

    @property
    def layers(self) -> list[QuantizedLinear]:
        return cast("list[QuantizedLinear]", list(self.each))

    @property
    def settings(self) -> dict[str, str | int]:
        """What its quantiser builds this kind of layer from, as a mapping."""
        return self.layers[0].settings

    def dequantize(self) -> Tensor:
        """The weights multiplied out: (experts, outputs, inputs) fp32."""
        return torch.stack([layer.dequantize() for layer in self.layers])

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """ends: (experts,) int32, the row behind the last one of each expert."""
        parts, start = [x.new_empty(0, self.out_features)], 0
        for number, end in enumerate(ends.tolist()):
            if end > start:
                part = self.each[number](x[start:end])
                parts.append(part if self.bias is None else part + self.bias[number].to(x.dtype))
            start = end
        return torch.cat(parts)


def expert(layer: GroupedLinear, number: int) -> Linear:
    """The weights of one expert as a layer by itself, without its bias; nothing is copied."""
    with torch.device("meta"):
        single = Linear(layer.in_features, layer.out_features)
    single.weight = nn.Parameter(layer.weight[number].detach(), requires_grad=False)
    return single
