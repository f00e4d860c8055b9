"""Read weights in fp8 with a scale per block of a matrix, as DeepSeek-V3 is published (arXiv
2412.19437), and dequantise them.

    name              (O, I)               float8_e4m3fn
    name_scale_inv    (O / 128, I / 128)   factor of each block; both sizes rounded up
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil
from typing import Any

import torch
from torch import Tensor

from culm.config import SettingError
from culm.convert.family import Fields
from culm.dtype import name_of

SCALE = "_scale_inv"
Blocks = tuple[int, int]  # rows and columns that share a scale


def read_blocks(packing: dict[str, Any]) -> Blocks:
    """The shape of a block, by the `quantization_config` of a folder.

    Raises:
        SettingError: it is another kind of fp8.
    """
    fields = Fields(packing)
    fields.only("quant_method", "fp8")
    fields.only("fmt", "e4m3")
    fields.only("activation_scheme", "dynamic")
    fields.only("scale_fmt", "float", "ue8m0")
    fields.only("expert_dtype", "fp8")
    # The tensors show which layers are not quantised.
    fields.drop("modules_to_not_convert", "modules_to_convert", "ignored_layers", "dequantize")
    given = fields.take("weight_block_size", None)
    fields.end()
    if not (
        isinstance(given, list | tuple)
        and len(given) == 2
        and all(type(size) is int and size > 0 for size in given)
    ):
        raise SettingError(
            f"weight_block_size: {given!r} is not read here, only two sizes of a block; use the "
            "folder that is not quantised"
        )
    return given[0], given[1]


def dequantized(
    tensors: Iterable[tuple[str, Tensor]], blocks: Blocks, source: str
) -> Iterator[tuple[str, Tensor]]:
    """The tensors as they come; those in fp8 become bf16, as soon as both parts have come.

    Raises:
        SettingError: one has no scales, or not one per block; or scales have no tensor.
    """
    waiting: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if tensor.dtype != torch.float8_e4m3fn and not name.endswith(SCALE):
            yield name, tensor
            continue
        whole = name.removesuffix(SCALE)
        other = waiting.pop(whole, None)
        if other is None:
            waiting[whole] = tensor
            continue
        weight, scales = (other, tensor) if name.endswith(SCALE) else (tensor, other)
        yield whole, _dequantized(weight, scales, blocks, f"{source}: tensor {whole}")
    for name, left in waiting.items():
        packed = left.dtype == torch.float8_e4m3fn
        wrong = "is in fp8 and has no scales" if packed else "has scales and is not in fp8"
        raise SettingError(f"{source}: tensor {name} {wrong}; copy the folder again")


def _dequantized(weight: Tensor, scales: Tensor, blocks: Blocks, what: str) -> Tensor:
    wanted = tuple(ceil(n / size) for n, size in zip(weight.shape, blocks, strict=False))
    factors = scales.float()
    sound = bool((factors.isfinite() & (factors >= 0)).all())
    if not (scales.is_floating_point() and sound):
        raise SettingError(
            f"{what}{SCALE} contains invalid scales ({name_of(scales.dtype)}): scales are finite "
            "floats and not negative; copy the folder again"
        )
    if weight.dtype != torch.float8_e4m3fn or weight.dim() != 2 or tuple(scales.shape) != wanted:
        raise SettingError(
            f"{what}: {tuple(weight.shape)} in blocks of {blocks[0]} by {blocks[1]} does not "
            f"match scales of shape {tuple(scales.shape)}"
        )
    rows, columns = weight.shape
    wide = factors.repeat_interleave(blocks[1], 1)[:, :columns]
    out = torch.empty(weight.shape, dtype=torch.bfloat16)
    for index, row in enumerate(wide):  # one row of blocks at a time, to save memory
        part = slice(index * blocks[0], min((index + 1) * blocks[0], rows))
        out[part] = weight[part].float() * row
    return out
