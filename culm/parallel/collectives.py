"""Exchanges between the ranks of one axis, through which gradients flow.

The adjoint of gathering is to add up what all ranks found and scatter it; and the other way round.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from culm.parallel.axis import Axis


def gathered(x: Tensor, dim: int, axis: Axis) -> Tensor:
    """The parts of all ranks, concatenated."""
    return x if axis.size == 1 else _Gather.apply(x, dim, axis)


def summed_part(x: Tensor, dim: int, axis: Axis) -> Tensor:
    """This rank's part of the sum over the ranks."""
    return x if axis.size == 1 else _SumScatter.apply(x, dim, axis)


def summed(x: Tensor, axis: Axis) -> Tensor:
    """The sum over the ranks; gradients are added up too."""
    return x if axis.size == 1 else _Sum.apply(x, axis)


def exchanged(x: Tensor, axis: Axis) -> Tensor:
    """x: (ranks, ...), a piece for each rank -> the pieces of all ranks for this one."""
    return exchanged_rows(x, [1] * axis.size, [1] * axis.size, axis)


def exchanged_rows(x: Tensor, sent: list[int], received: list[int], axis: Axis) -> Tensor:
    """x: (N, ...), the rows for each rank in order -> the rows that all ranks sent to this one.

    sent, received: how many rows go to each rank, and come from it.
    """
    return x if axis.size == 1 else _Exchange.apply(x, sent, received, axis)


def _gather(x: Tensor, dim: int, axis: Axis) -> Tensor:
    return axis.all_gather(x.movedim(dim, 0)).movedim(0, dim)


def _sum_scatter(x: Tensor, dim: int, axis: Axis) -> Tensor:
    return axis.reduce_scatter(x.movedim(dim, 0)).movedim(0, dim)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, dim: int, axis: Axis) -> Tensor:
        ctx.dim, ctx.axis = dim, axis
        return _gather(x, dim, axis)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor):
        return _sum_scatter(grads[0], ctx.dim, ctx.axis), None, None  # type: ignore[attr-defined]


class _SumScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, dim: int, axis: Axis) -> Tensor:
        ctx.dim, ctx.axis = dim, axis
        return _sum_scatter(x, dim, axis)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor):
        return _gather(grads[0], ctx.dim, ctx.axis), None, None  # type: ignore[attr-defined]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return axis.all_reduce(x)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor):
        return ctx.axis.all_reduce(grads[0]), None  # type: ignore[attr-defined]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, sent: list[int], received: list[int], axis: Axis) -> Tensor:
        ctx.sent, ctx.received, ctx.axis = sent, received, axis
        return axis.all_to_all(x, sent, received)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor):
        back = ctx.received, ctx.sent  # type: ignore[attr-defined]
        return ctx.axis.all_to_all(grads[0], *back), None, None, None  # type: ignore[attr-defined]
