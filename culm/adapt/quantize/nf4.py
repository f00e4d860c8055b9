"""NF4 weights with double quantisation, the base of QLoRA (arXiv 2305.14314).

    w = level[q] * absmax,   q in 0..15,   one absmax per block of inputs

The levels are quantiles of the normal distribution. The absmax of 256 blocks are stored as 8-bit
steps around their mean; the paper uses 8-bit floats, but linear steps are as accurate. Together
this is 4.13 bits per weight for blocks of 64. There is no fast matmul: it saves memory, not time.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.adapt.quantize.linear import QuantizedLinear
from culm.adapt.quantize.quantizer import LinearQuantizer, undivided
from culm.model.linear import GroupedLinear, Linear

LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
TOGETHER = 256  # blocks whose absmax share a step


class NF4(LinearQuantizer):
    """block: inputs that share an absmax. targets: patterns; default: all layers of the blocks."""

    kind: Literal["nf4"] = "nf4"
    block: Literal[32, 64, 128] = 64

    def build(self, inputs: int, outputs: int, bias: bool) -> NF4Linear:
        return NF4Linear(inputs, outputs, bias, self.block)

    def round(self, linear: Linear) -> NF4Linear:
        return NF4Linear.from_linear(linear, self.block)

    def divides(self, name: str, linear: Linear | GroupedLinear) -> None:
        if linear.in_features % self.block:
            raise undivided("block", self.block, name, linear)


class NF4Linear(QuantizedLinear):
    """weight: (outputs, inputs / 2) uint8, the even input in the low half of each byte.

    For the n = outputs * inputs / block absmax: steps (n,) int8, step (n / 256,) and mean () fp32.
    """

    steps: Tensor
    step: Tensor
    mean: Tensor

    def __init__(self, inputs: int, outputs: int, bias: bool, block: int) -> None:
        super().__init__(inputs, outputs, bias)
        self.block, count = block, outputs * inputs // block
        self.register_buffer("weight", torch.zeros(outputs, inputs // 2, dtype=torch.uint8))
        self.register_buffer("steps", torch.zeros(count, dtype=torch.int8))
        self.register_buffer("step", torch.zeros(-(-count // TOGETHER)))
        self.register_buffer("mean", torch.zeros(()))

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: Linear, block: int = 64) -> NF4Linear:
        """The nearest NF4 layer; the block divides its inputs."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, linear.bias is not None, block)
        blocks = linear.weight.detach().float().view(-1, block)
        layer.steps, layer.step, layer.mean = _steps(blocks.abs().amax(1))
        # The weights are divided by the absmax as it will be dequantised.
        absmax = layer.absmax().clamp_min(1e-30)
        levels = torch.tensor(LEVELS, device=blocks.device)
        codes = torch.bucketize(blocks / absmax[:, None], (levels[1:] + levels[:-1]) / 2)
        codes = codes.to(torch.uint8).view(linear.weight.shape)
        layer.weight = codes[:, ::2] | codes[:, 1::2] << 4
        layer.bias = None if linear.bias is None else linear.bias.detach().clone()
        return layer

    @property
    def settings(self) -> dict[str, str | int]:
        return {"kind": "nf4", "block": self.block}

    def absmax(self) -> Tensor:
        """(outputs * inputs / block,) fp32."""
        return _absmax(self.steps, self.step, self.mean)

    def dequantize(self) -> Tensor:
        levels = torch.tensor(LEVELS, device=self.weight.device)
        codes = torch.stack((self.weight & 15, self.weight >> 4), -1).view(-1, self.block)
        weight = levels[codes.int()] * self.absmax()[:, None]
        return weight.view(self.out_features, self.in_features)


def _steps(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """steps, step and mean of absmax (n,): the second quantisation."""
    mean = absmax.mean()
    from_mean = _together(absmax - mean)
    step = (from_mean.abs().amax(1) / 127).clamp_min(1e-30)
    steps = (from_mean / step[:, None]).round().to(torch.int8)
    return steps.flatten()[: len(absmax)].contiguous(), step, mean


def _absmax(steps: Tensor, step: Tensor, mean: Tensor) -> Tensor:
    return (_together(steps.float()) * step[:, None]).flatten()[: len(steps)] + mean


def _together(values: Tensor) -> Tensor:
    """(n,) as rows of 256, the last one padded with zeros."""
    return F.pad(values, (0, -len(values) % TOGETHER)).view(-1, TOGETHER)
