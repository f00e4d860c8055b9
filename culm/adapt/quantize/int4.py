"""int4 weights in groups along the inputs, rounded to nearest.

    w = scale * (q - 8) + zero,   q in 0..15,   scale = (max - min) / 15 of the group and 0

which is the affine code of torch's int4 kernels. Rounds to nearest, ties to even.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from culm.adapt.quantize.linear import QuantizedLinear
from culm.adapt.quantize.quantizer import TrainableQuantizer, undivided
from culm.compiled import compiled
from culm.log import say
from culm.model.linear import GroupedLinear, Linear


class Int4(TrainableQuantizer):
    """group: inputs that share a scale. targets: patterns; default: all layers of the blocks."""

    kind: Literal["int4"] = "int4"
    group: Literal[32, 64, 128] = 32

    def build(self, inputs: int, outputs: int, bias: bool) -> Int4Linear:
        return Int4Linear(inputs, outputs, bias, self.group)

    def round(self, linear: Linear) -> Int4Linear:
        return Int4Linear.from_linear(linear, self.group)

    def divides(self, name: str, linear: Linear | GroupedLinear) -> None:
        if linear.in_features % self.group:
            raise undivided("group", self.group, name, linear)

    def rounded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        groups = weight.detach().float().unflatten(1, (-1, self.group))
        scale, zero = (part[..., None] for part in grid(groups))
        steps = steps_of(groups, scale, zero)
        inside = (steps >= 0) & (steps <= 15)
        return values_of(steps.clamp(0, 15), scale, zero).flatten(1), inside.flatten(1)


def grid(weight: Tensor) -> tuple[Tensor, Tensor]:
    """scale and zero (...) bf16 of groups (..., group), from their minimum to their maximum."""
    low, high = weight.amin(-1).clamp_max(0), weight.amax(-1).clamp_min(0)
    # Both are rounded to the kernel's bf16 before they are used.
    scale = ((high - low) / 15).clamp_min(1e-30).bfloat16()
    zero = scale.float() * (8 + (low / scale.float()).round())
    return scale, zero.bfloat16()


def steps_of(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The nearest integer codes of weights, 0..15 or a little outside, as fp32."""
    return ((weight - zero.float()) / scale.float()).round() + 8


def codes_of(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The nearest codes 0..15 of weights, as fp32; all three broadcast."""
    return steps_of(weight, scale, zero).clamp(0, 15)


def values_of(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The values of codes, fp32; all three broadcast."""
    return (codes.float() - 8) * scale.float() + zero.float()


def nearest(weight: Tensor, group: int) -> Tensor:
    """Weights (outputs, inputs) rounded to int4, fp32."""
    groups = weight.float().unflatten(1, (-1, group))
    scale, zero = (part[..., None] for part in grid(groups))
    return values_of(codes_of(groups, scale, zero), scale, zero).flatten(1)


class Int4Linear(QuantizedLinear):
    """weight: (outputs, inputs / 2) uint8, the even input in the low half of each byte.

    scale, zero: (outputs, inputs / group) bf16. The kernel needs the weights in an order that
    depends on the CPU: `prepare` makes that copy, and it is never saved.
    """

    scale: Tensor
    zero: Tensor
    reordered: Tensor | None
    affine: Tensor | None

    def __init__(self, inputs: int, outputs: int, bias: bool, group: int) -> None:
        super().__init__(inputs, outputs, bias)
        self.group = group
        self.register_buffer("weight", torch.zeros(outputs, inputs // 2, dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(outputs, inputs // group, dtype=torch.bfloat16))
        self.register_buffer("zero", torch.zeros(outputs, inputs // group, dtype=torch.bfloat16))
        self.register_buffer("reordered", None, persistent=False)
        self.register_buffer("affine", None, persistent=False)

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: Linear, group: int = 32) -> Int4Linear:
        """The nearest int4 layer; the group divides its inputs."""
        groups = linear.weight.detach().float().unflatten(1, (-1, group))
        scale, zero = grid(groups)
        codes = codes_of(groups, scale[..., None], zero[..., None]).flatten(1)
        return cls.from_codes(codes, scale, zero, linear.bias)

    @classmethod
    @torch.no_grad()
    def from_codes(
        cls, codes: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None
    ) -> Int4Linear:
        """codes: (outputs, inputs) 0..15; scale, zero: (outputs, inputs / group) bf16."""
        outputs, inputs = codes.shape
        with torch.device("meta"):
            layer = cls(inputs, outputs, bias is not None, inputs // scale.shape[1])
        codes = codes.to(torch.uint8)
        layer.weight = codes[:, ::2] | codes[:, 1::2] << 4
        layer.scale, layer.zero = scale, zero
        layer.bias = None if bias is None else bias.detach().clone()
        layer.prepare()
        return layer

    def _codes(self) -> Tensor:
        """(outputs, inputs) uint8 in 0..15."""
        return torch.stack((self.weight & 15, self.weight >> 4), -1).flatten(1)

    @property
    def settings(self) -> dict[str, str | int]:
        return {"kind": "int4", "group": self.group}

    def prepare(self) -> None:
        self.packed = self.weight.device.type == "cpu" and self.out_features % 16 == 0 and _runs()
        if self.packed:
            self.reordered = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
                self._codes().int(), 1
            )
            self.affine = torch.stack((self.scale.t(), self.zero.t()), -1).contiguous()

    def decode(self, x: Tensor) -> Tensor:
        matmul = torch.ops.aten._weight_int4pack_mm_for_cpu
        return matmul(x, self.reordered, self.group, self.affine)

    def dequantize(self) -> Tensor:
        codes = self._codes().unflatten(1, (-1, self.group))
        return values_of(codes, self.scale[..., None], self.zero[..., None]).flatten(1)

    def dense(self, x: Tensor) -> Tensor:
        on_cpu = x.dtype == torch.bfloat16 and x.device.type == "cpu"
        library = _library() if on_cpu and not torch.compiler.is_compiling() else None
        return super().dense(x) if library is None else x @ self._in_bf16(library).t()

    def _in_bf16(self, library: ctypes.CDLL) -> Tensor:
        """`dequantize` rounded to bf16, in one pass over the weights instead of ten."""
        out = torch.empty(self.out_features, self.in_features, dtype=torch.bfloat16)
        parts = [part.contiguous() for part in (self.weight, self.scale, self.zero)]
        library.culm_dequantize(
            *(part.data_ptr() for part in (*parts, out)),
            *out.shape, self.group, torch.get_num_threads(),
        )  # fmt: skip
        return out


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled `int4.cpp`, if this machine can have it."""
    try:
        found = compiled(Path(__file__).with_name("int4.cpp"), "the reading of int4 weights")
    except OSError:
        return None
    found.culm_dequantize.argtypes = (*[c_void_p] * 4, *[c_int64] * 4)
    found.culm_dequantize.restype = None
    return found


@cache
def _runs() -> bool:
    """Whether torch's int4 kernels work here, by a small trial."""
    try:
        codes = torch.full((16, 32), 9, dtype=torch.int32)
        reordered = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        x, affine = torch.ones(1, 32, dtype=torch.bfloat16), torch.ones(1, 16, 2).bfloat16()
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(x, reordered, 32, affine)
        works = bool((out == 64).all())
    except (RuntimeError, NotImplementedError, AttributeError):
        works = False
    how = "packed kernel" if works else "dequantised (no packed kernel)"
    say(f"int4 weights on CPU: {how}")
    return works
