"""int8 weights, symmetric, one scale per output channel: scale = absmax / 127, ties to even."""

from __future__ import annotations

from functools import cache
from typing import Literal, Self

import torch
from torch import Tensor

from culm.adapt.quantize.linear import QuantizedLinear
from culm.adapt.quantize.quantizer import TrainableQuantizer
from culm.adapt.replace import Patterns
from culm.log import say
from culm.model.linear import Linear


class Int8(TrainableQuantizer):
    """targets: patterns of linear layers; default: all layers of the blocks, and the head."""

    kind: Literal["int8"] = "int8"
    targets: Patterns = ("blocks.*", "head")

    def build(self, inputs: int, outputs: int, bias: bool) -> Int8Linear:
        return Int8Linear(inputs, outputs, bias)

    def round(self, linear: Linear) -> Int8Linear:
        return Int8Linear.from_linear(linear)

    def rounded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return nearest(weight)


def nearest(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (outputs, inputs) rounded to int8, fp32, and which of them are within the range."""
    scale, steps = steps_of(weight)
    return steps.clamp(-127, 127) * scale.float()[:, None], steps.abs() <= 127


def steps_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """scale (outputs,) bf16, and weights (outputs, inputs) in integer steps of it, fp32.

    The kernel needs its scale in bf16; quantising by the rounded scale costs nothing more. A row of
    zeros gets a tiny scale, which keeps the division finite.
    """
    weight = weight.detach().float()
    scale = (weight.abs().amax(1) / 127).clamp_min(1e-30).bfloat16()
    return scale, (weight / scale.float()[:, None]).round()


class Int8Linear(QuantizedLinear):
    """weight: (outputs, inputs) int8 steps; scale: (outputs,) bf16, the size of a step."""

    scale: Tensor

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__(inputs, outputs, bias)
        self.register_buffer("weight", torch.zeros(outputs, inputs, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(outputs, dtype=torch.bfloat16))

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: Linear) -> Self:
        """The nearest int8 layer."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, linear.bias is not None)
        layer.scale, steps = steps_of(linear.weight)
        layer.weight = steps.clamp(-127, 127).to(torch.int8)
        layer.bias = None if linear.bias is None else linear.bias.detach().clone()
        layer.prepare()
        return layer

    @property
    def settings(self) -> dict[str, str | int]:
        return {"kind": "int8"}

    def prepare(self) -> None:
        # The bf16 kernel reads past rows whose length is no multiple of 16 (wrong sums, crashes).
        self.packed = self.weight.device.type == "cpu" and self.in_features % 16 == 0 and _runs()

    def decode(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm(x, self.weight, self.scale)

    def dequantize(self) -> Tensor:
        return self.weight.float() * self.scale.float()[:, None]

    def dense(self, x: Tensor) -> Tensor:
        # Integers up to 127 are exact in bf16, so the scale is applied after the matmul.
        return (x @ self.weight.to(x.dtype).t()) * self.scale.to(x.dtype)


@cache
def _runs() -> bool:
    """Whether torch's int8 kernel works here, by a small trial."""
    try:
        x, weight = torch.ones(1, 32, dtype=torch.bfloat16), torch.ones(32, 32, dtype=torch.int8)
        scale = torch.ones(32, dtype=torch.bfloat16)
        works = bool((torch.ops.aten._weight_int8pack_mm(x, weight, scale) == 32).all())
    except (RuntimeError, NotImplementedError, AttributeError):
        works = False
    say(f"int8 weights on CPU: {'packed kernel' if works else 'dequantised (no packed kernel)'}")
    return works
