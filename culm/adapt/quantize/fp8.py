"""fp8 weights: e4m3 (4 exponent bits, maximum 448) with one scale per output channel.

w = scale * float8(w / scale),   scale = absmax / 448
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor

from culm.adapt.quantize.linear import QuantizedLinear
from culm.adapt.quantize.quantizer import LinearQuantizer
from culm.adapt.replace import Patterns
from culm.log import say
from culm.model.linear import Linear

MAXIMUM = 448.0  # of e4m3


class FP8(LinearQuantizer):
    """targets: patterns of linear layers; default: all layers of the blocks, and the head."""

    kind: Literal["fp8"] = "fp8"
    targets: Patterns = ("blocks.*", "head")

    def build(self, inputs: int, outputs: int, bias: bool) -> FP8Linear:
        return FP8Linear(inputs, outputs, bias)

    def round(self, linear: Linear) -> FP8Linear:
        return FP8Linear.from_linear(linear)


class FP8Linear(QuantizedLinear):
    """weight: (outputs, inputs) float8_e4m3fn; scale: (outputs,) fp32.

    On a GPU with an fp8 matmul, bf16 activations become fp8 too, with a scale per token; a small
    trial finds out. Elsewhere, and on every CPU, the weights are dequantised, without further
    rounding.
    """

    scale: Tensor

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__(inputs, outputs, bias)
        weight = torch.zeros(outputs, inputs, dtype=torch.float8_e4m3fn)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", torch.ones(outputs))

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: Linear) -> FP8Linear:
        """The nearest fp8 layer."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, linear.bias is not None)
        layer.weight, scale = _rows(linear.weight.detach().float())
        layer.scale = scale[:, 0]
        layer.bias = None if linear.bias is None else linear.bias.detach().clone()
        return layer

    @property
    def settings(self) -> dict[str, str | int]:
        return {"kind": "fp8"}

    def dequantize(self) -> Tensor:
        return self.weight.float() * self.scale[:, None]

    def matmul(self, x: Tensor) -> Tensor:
        whole = self.in_features % 16 == 0 and self.out_features % 16 == 0
        if x.device.type == "cpu" or x.dtype != torch.bfloat16 or not whole:
            return self.dense(x)
        return self.scaled(x) if _runs(x.device.type) else self.dense(x)

    def scaled(self, x: Tensor) -> Tensor:
        """x W^T in fp8; x: (N, inputs) bf16."""
        codes, scale = _rows(x.float())
        return torch._scaled_mm(
            codes, self.weight.t(), scale_a=scale, scale_b=self.scale[None],
            out_dtype=torch.bfloat16,
        )  # fmt: skip


def _rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: (N, inputs) fp32 in e4m3, and the scales of its rows (N, 1) fp32."""
    scale = (x.abs().amax(1, keepdim=True) / MAXIMUM).clamp_min(1e-30)
    return (x / scale).to(torch.float8_e4m3fn), scale


@cache
def _runs(device: str) -> bool:
    """Whether torch's fp8 matmul works on the device, by a small trial."""
    try:
        x = torch.ones(16, 16, device=device).to(torch.float8_e4m3fn)
        ones = torch.ones(16, 1, device=device)
        out = torch._scaled_mm(x, x.t(), scale_a=ones, scale_b=ones.t(), out_dtype=torch.bfloat16)
        works = bool((out == 16).all())
    except (RuntimeError, NotImplementedError, AttributeError):
        works = False
    say(f"fp8 weights on {device}: {'fp8 matmul' if works else 'dequantised (no fp8 matmul)'}")
    return works
