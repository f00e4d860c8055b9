"""Exchanges between the ranks of one axis of the mesh, through which gradients flow.

The adjoint of gathering is to add up what all ranks found and scatter it; and the other way round.
"""

from __future__ import annotations

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.distributed import DeviceMesh, ProcessGroup

if hasattr(distributed, "all_gather_single"):  # PyTorch 2.13 renamed them
    ALL_GATHER, REDUCE_SCATTER = distributed.all_gather_single, distributed.reduce_scatter_single
else:
    ALL_GATHER, REDUCE_SCATTER = (
        distributed.all_gather_into_tensor,
        distributed.reduce_scatter_tensor,
    )


def gathered(x: Tensor, dim: int, axis: DeviceMesh) -> Tensor:
    """The parts of all ranks, concatenated."""
    return x if axis.size() == 1 else _Gather.apply(x, dim, axis.get_group())


def summed_part(x: Tensor, dim: int, axis: DeviceMesh) -> Tensor:
    """The own part of the sum over the ranks."""
    return x if axis.size() == 1 else _SumScatter.apply(x, dim, axis.get_group())


def summed(x: Tensor, axis: DeviceMesh) -> Tensor:
    """The sum over the ranks; gradients are added up too."""
    return x if axis.size() == 1 else _Sum.apply(x, axis.get_group())


def part(x: Tensor, dim: int, axis: DeviceMesh) -> Tensor:
    """The own part of what every rank holds; the last parts may be smaller."""
    if axis.size() == 1:
        return x
    size = -(-x.shape[dim] // axis.size())
    first = min(size * axis.get_local_rank(), x.shape[dim])
    return x.narrow(dim, first, min(size, x.shape[dim] - first))


def exchanged(x: Tensor, axis: DeviceMesh) -> Tensor:
    """x: (ranks, ...), a piece for each rank -> the pieces of all ranks for this one."""
    ones = [1] * axis.size()
    return exchanged_rows(x, ones, ones, axis)


def exchanged_rows(x: Tensor, sent: list[int], received: list[int], axis: DeviceMesh) -> Tensor:
    """x: (N, ...), so many rows for each rank in order -> the rows that all ranks sent to this one.

    received: how many come from each.
    """
    return x if axis.size() == 1 else _Exchange.apply(x, sent, received, axis.get_group())


def _gather(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    x = x.movedim(dim, 0).contiguous()
    out = x.new_empty((x.shape[0] * group.size(), *x.shape[1:]))
    ALL_GATHER(out, x, group=group)
    return out.movedim(0, dim)


def _sum_scatter(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    x = x.movedim(dim, 0).contiguous()
    out = x.new_empty((x.shape[0] // group.size(), *x.shape[1:]))
    REDUCE_SCATTER(out, x, group=group)
    return out.movedim(0, dim)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _gather(x, dim, group)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor):
        return _sum_scatter(grads[0], ctx.dim, ctx.group), None, None  # type: ignore[attr-defined]


class _SumScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _sum_scatter(x, dim, group)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor):
        return _gather(grads[0], ctx.dim, ctx.group), None, None  # type: ignore[attr-defined]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        out = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(out, group=group)
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor):
        out = grads[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(out, group=ctx.group)  # type: ignore[attr-defined]
        return out, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, sent: list[int], received: list[int], group: ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _exchange(x, sent, received, group)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor):
        back = ctx.received, ctx.sent, ctx.group  # type: ignore[attr-defined]
        return _exchange(grads[0], *back), None, None, None


def _exchange(x: Tensor, sent: list[int], received: list[int], group: ProcessGroup) -> Tensor:
    out = x.new_empty((sum(received), *x.shape[1:]))
    distributed.all_to_all_single(out, x.contiguous(), received, sent, group=group)
    return out
