"""Grouped matmul: each group of rows has its own matrix.

Custom operators with their own shapes, gradients and FLOPs, since torch's `grouped_mm` takes only
bf16 on the meta device and in compiled code, and only rows that are a multiple of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("culm::grouped", mutates_args=())
def grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows of x (M, inputs) times the weight (experts, outputs, inputs) of their group.

    ends: (experts,) int32, the row after the last one of each group; the last is M.
    """
    if _aligned(x, weight):
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
    return _filled(x.new_empty(len(x), weight.shape[1]), x, weight.transpose(1, 2), ends)


@torch.library.custom_op("culm::grouped_back", mutates_args=())
def _back(grad: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The gradient of x (M, inputs) from that of the result (M, outputs)."""
    if _aligned(grad, weight):
        return F.grouped_mm(grad, weight, offs=ends)
    return _filled(grad.new_empty(len(grad), weight.shape[2]), grad, weight, ends)


@torch.library.custom_op("culm::grouped_outer", mutates_args=())
def _outer(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """The gradient of the weights (experts, outputs, inputs); 0 for a group without rows."""
    if grad.shape[1] * x.itemsize % 16 == 0 and x.shape[1] * x.itemsize % 16 == 0:
        return F.grouped_mm(grad.t(), x, offs=ends)
    out = x.new_zeros(len(ends), grad.shape[1], x.shape[1])
    start = 0
    for group, end in zip(out, ends.tolist(), strict=True):
        torch.mm(grad[start:end].t(), x[start:end], out=group)
        start = end
    return out


def _aligned(x: Tensor, weight: Tensor) -> bool:
    return all(size * x.itemsize % 16 == 0 for size in weight.shape[1:])


def _filled(out: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The same by a loop; weight: (experts, inputs, outputs)."""
    start = 0
    for matrix, end in zip(weight, ends.tolist(), strict=True):
        torch.mm(x[start:end], matrix, out=out[start:end])
        start = end
    return out


@grouped.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@_back.register_fake
def _(grad: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[0], weight.shape[2])


@_outer.register_fake
def _(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.shape[0], grad.shape[1], x.shape[1])


def _keep(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, ends = ctx.saved_tensors
    grad = grad.contiguous()
    wanted = ctx.needs_input_grad
    return (
        _back(grad, weight, ends) if wanted[0] else None,
        _outer(grad, x, ends) if wanted[1] else None,
        None,
    )


grouped.register_autograd(_differentiate, setup_context=_keep)


def _flops(x: tuple[int, ...], weight: tuple[int, ...], *_: object, **__: object) -> int:
    """FLOPs of `grouped` from shapes: two per multiply-add."""
    return 2 * x[0] * x[1] * weight[1]


def _back_flops(grad: tuple[int, ...], other: tuple[int, ...], *_: object, **__: object) -> int:
    """FLOPs of either gradient."""
    return 2 * grad[0] * grad[1] * other[-1]


FLOPS: dict[Any, Callable[..., int]] = {  # in the form of torch.utils.flop_counter
    torch.ops.culm.grouped: _flops,
    torch.ops.culm.grouped_back: _back_flops,
    torch.ops.culm.grouped_outer: _back_flops,
}
