"""States of an optimizer in 8 bits (arXiv 2110.02861).

Each block of a row is divided by its largest magnitude, and each value becomes the nearest code of
a dynamic map, whose codes are dense around zero. Blocks lie within a row (all that follows the
first dimension), so a model that is sharded along that dimension has the same blocks.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from culm.config import SettingError
from culm.dtensor import like

BLOCK = 256  # values that share a scale
DECADES = 7  # powers of ten that a map spans


@functools.cache
def dynamic_map(signed: bool, device: torch.device) -> Tensor:
    """256 sorted codes in [-1, 1] or [0, 1].

    The decade 10^-k has half as many codes as the next larger one, at the centres of equal parts of
    (0.1, 1]; then 0 and 1.
    """
    codes = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for decade in range(DECADES):
        parts = 2 ** (decade if signed else decade + 1)
        edges = torch.linspace(0.1, 1, parts + 1, dtype=torch.float64)
        centres = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - DECADES + 1)
        codes = torch.cat((codes, centres, -centres if signed else centres[:0]))
    return codes.float().sort().values.to(device)


def zeros(parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
    """Codes of the shape of a parameter, and the scales (rows, blocks), both sharded like it.

    Every value is zero, since every scale is.
    """
    if isinstance(parameter, DTensor) and any(place.is_shard(1) for place in parameter.placements):
        raise SettingError(
            "train.optimizer: blocks of 8 bits go along rows, and parallel.tensor divides the rows "
            "of some weights; use adamw, or parallel.tensor=1"
        )
    row = parameter.numel() // max(1, parameter.shape[0])
    scales = torch.zeros(parameter.shape[0], -(-row // BLOCK), device=parameter.device)
    return torch.zeros_like(parameter, dtype=torch.uint8), like(scales, parameter)


def quantize(values: Tensor, codes: Tensor, scales: Tensor, signed: bool) -> None:
    """Write fp32 values into their codes and scales."""
    blocks = _blocks(values)
    torch.amax(blocks.abs(), dim=-1, out=scales)
    relative = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    found = _nearest(relative, signed)
    if not signed:  # a square that became 0 would make a step of any size
        found.clamp_(min=1)
    codes.copy_(_rows(found, codes))


def dequantize(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """The fp32 values of codes."""
    values = dynamic_map(signed, codes.device)[_blocks(codes).int()]
    return _rows(values * scales[..., None], codes)


def _nearest(relative: Tensor, signed: bool) -> Tensor:
    """The number of the nearest code, as uint8: 4 times faster than a binary search on a CPU.

    The upper half of a float leaves two codes at most, and one comparison decides.
    """
    least, middles = _tables(signed, relative.device)
    found = least[(relative.view(torch.int32) >> 16) & 0xFFFF]
    return found.add_(relative > middles[found.int()])


@functools.cache
def _tables(signed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """The least code of all floats with the same upper half, and the middles above each code."""
    known = dynamic_map(signed, device)
    middles = (known[1:] + known[:-1]) / 2
    upper = torch.arange(1 << 16, dtype=torch.int32, device=device) << 16
    least = torch.where(upper < 0, upper | 0xFFFF, upper).view(torch.float32)
    codes = torch.bucketize(least.nan_to_num(), middles).to(torch.uint8)
    return codes, torch.cat((middles, middles.new_full((1,), torch.inf)))


def _blocks(values: Tensor) -> Tensor:
    """(rows, blocks, BLOCK), filled up with zeros."""
    rows = values.flatten(1)
    return F.pad(rows, (0, -rows.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))


def _rows(blocks: Tensor, shaped: Tensor) -> Tensor:
    """What is left without the filling, in the shape of another tensor."""
    columns = shaped.flatten(1).shape[1]
    return blocks.flatten(1)[:, :columns].reshape(shaped.shape)
