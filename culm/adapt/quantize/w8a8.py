"""W8A8: int8 weights as in `Int8`, times activations that become int8 token by token.

    y = (round(x / s) W^T) * s * scale,   s = max|x| / 127 of the token

The whole numbers are multiplied and summed exactly, in int32.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.adapt.quantize.int8 import Int8Linear, nearest
from culm.adapt.quantize.quantizer import TrainableQuantizer
from culm.adapt.replace import Patterns
from culm.log import say
from culm.model.linear import Linear

LEAST = 17  # rows that the product wants on a GPU; widths are to be multiples of 8 there


class W8A8(TrainableQuantizer):
    """targets: patterns of linear layers; all of the blocks and the head."""

    kind: Literal["w8a8"] = "w8a8"
    targets: Patterns = ("blocks.*", "head")

    def build(self, inputs: int, outputs: int, bias: bool) -> W8A8Linear:
        return W8A8Linear(inputs, outputs, bias)

    def round(self, linear: Linear) -> W8A8Linear:
        return W8A8Linear.from_linear(linear)

    def rounded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return nearest(weight)

    def read(self, x: Tensor) -> Tensor:
        steps, scale = token_steps(x.float())
        return (steps * scale).to(x.dtype)


class W8A8Linear(Int8Linear):
    """Buffers as those of `Int8Linear`.

    torch's product of int8 matrices is taken where it gives the right sums, which is found by
    running a small case on the device. Elsewhere the same whole numbers are multiplied in fp32:
    right up to the rounding of sums above 2^24, but no faster than weights of fp32.
    """

    @property
    def settings(self) -> dict[str, str | int]:
        return {"kind": "w8a8"}

    def prepare(self) -> None:
        """Nothing: how it multiplies depends on the device, which may change."""

    def matmul(self, x: Tensor) -> Tensor:
        steps, scale = token_steps(x.float())
        sums = self._sums(steps)
        return (sums.to(scale.dtype) * scale * self.scale.to(scale.dtype)).to(x.dtype)

    def _sums(self, steps: Tensor) -> Tensor:
        """steps W^T; steps: (N, inputs) whole numbers up to 127."""
        device, rows = steps.device.type, len(steps)
        whole = self.in_features % 8 == 0 and self.out_features % 8 == 0
        if not _runs(device) or (device != "cpu" and not whole):
            return steps @ self.weight.float().t()
        codes = steps.to(torch.int8)
        if device != "cpu":
            codes = F.pad(codes, (0, 0, 0, max(0, LEAST - rows)))
        return torch._int_mm(codes, self.weight.t())[:rows]


def token_steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: (..., inputs) fp32 in whole steps up to 127, as fp32, and the size of a step (..., 1)."""
    scale = (x.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
    return (x / scale).round(), scale


@cache
def _runs(device: str) -> bool:
    """Whether this torch multiplies int8 matrices there, found by running a small case."""
    try:
        x = torch.full((32, 32), -127, dtype=torch.int8, device=device)
        works = bool((torch._int_mm(x, x.t()) == 32 * 127**2).all())
    except (RuntimeError, NotImplementedError, AttributeError):
        works = False
    say(f"int8 activations on {device}: {'int8 product' if works else 'multiplied in fp32'}")
    return works
