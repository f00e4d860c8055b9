"""W8A8: int8 weights as in `Int8`, and activations in int8 with a scale per token.

    y = (round(x / s) W^T) * s * scale,   s = max|x| / 127 of the token

The integers are multiplied and summed exactly, in int32.
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

MINIMUM_ROWS = 17  # of the int8 matmul on a GPU, which also needs widths that are multiples of 8


class W8A8(TrainableQuantizer):
    """targets: patterns of linear layers; default: all layers of the blocks, and the head."""

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
    """The buffers are those of `Int8Linear`.

    torch's int8 matmul is used on devices where a small trial gives the right sums. Elsewhere the
    same integers are multiplied in fp32: exact up to rounding of sums above 2^24, but no faster
    than fp32 weights.
    """

    @property
    def settings(self) -> dict[str, str | int]:
        return {"kind": "w8a8"}

    def prepare(self) -> None:
        """Nothing: the matmul depends on the device, which may change."""

    def matmul(self, x: Tensor) -> Tensor:
        steps, scale = token_steps(x.float())
        sums = self._sums(steps)
        return (sums.to(scale.dtype) * scale * self.scale.to(scale.dtype)).to(x.dtype)

    def _sums(self, steps: Tensor) -> Tensor:
        """steps W^T; steps: (N, inputs) integers up to 127."""
        device, rows = steps.device.type, len(steps)
        whole = self.in_features % 8 == 0 and self.out_features % 8 == 0
        if not _runs(device) or (device != "cpu" and not whole):
            return steps @ self.weight.float().t()
        codes = steps.to(torch.int8)
        if device != "cpu":
            codes = F.pad(codes, (0, 0, 0, max(0, MINIMUM_ROWS - rows)))
        return torch._int_mm(codes, self.weight.t())[:rows]


def token_steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: (..., inputs) fp32 in integer steps up to 127, fp32, and the size of a step (..., 1)."""
    scale = (x.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
    return (x / scale).round(), scale


@cache
def _runs(device: str) -> bool:
    """Whether torch's int8 matmul works on the device, by a small trial."""
    try:
        x = torch.full((32, 32), -127, dtype=torch.int8, device=device)
        works = bool((torch._int_mm(x, x.t()) == 32 * 127**2).all())
    except (RuntimeError, NotImplementedError, AttributeError):
        works = False
    how = "int8 matmul" if works else "fp32 matmul (no int8 matmul)"
    say(f"int8 activations on {device}: {how}")
    return works
