"""The norm of tensors, whose parts may lie on several ranks, and the limit of that of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.distributed import DeviceMesh
from torch.distributed.tensor import DTensor

from culm.dtensor import local_shard
from culm.parallel.axis import Axis

Axes = tuple[DeviceMesh, ...]  # over whose ranks a tensor is divided


class Norm:
    """The 2-norm of tensors that are added one after the other, and need not live at once.

    As torch.nn.utils.get_total_norm, which takes no tensors of different meshes, and computes the
    norm of bf16 tensors in bf16; this one is in fp32, or fp64 for such tensors.

    pipeline: ranks with other parameters.
    """

    def __init__(self, pipeline: Axis | None = None) -> None:
        self._pipeline = pipeline
        self._squares: dict[Axes, Tensor] = {}

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Add tensors of which this rank may hold a part."""
        found: dict[Axes, list[Tensor]] = {}
        for tensor in tensors:
            found.setdefault(_axes(tensor), []).append(local_shard(tensor))
        for axes, parts in found.items():
            # fp64 is not narrowed: points of a manifold have it.
            double = any(part.dtype == torch.float64 for part in parts)
            norms = torch._foreach_norm(
                parts, 2.0, dtype=torch.float64 if double else torch.float32
            )
            square = torch.stack(norms).double().square().sum()
            known = self._squares.get(axes)
            self._squares[axes] = square if known is None else known + square

    def total(self, device: torch.device) -> float:
        """Of all that was added on all ranks; every rank calls it."""
        square = sum(_over_ranks(square, axes) for axes, square in self._squares.items())
        if self._pipeline is not None:
            own = torch.tensor(square, dtype=torch.float64, device=device)
            square = float(self._pipeline.all_reduce(own))
        return math.sqrt(square)


def clip(
    parameters: list[nn.Parameter],
    limit: float,
    whole: Norm,
    counts: Callable[[nn.Parameter], bool] = lambda parameter: True,
) -> float:
    """Scale the gradients down to the norm `limit` at most; gives the norm before.

    As torch.nn.utils.clip_grad_norm_, but of `Norm`.

    whole: adds it up. counts: whether the norm has a parameter from this rank, where several have
    it.
    """
    whole.add(p.grad for p in parameters if p.grad is not None and counts(p))
    norm = whole.total(parameters[0].device)
    if (scale := limit / (norm + 1e-6)) < 1:
        for p in parameters:
            if p.grad is not None:
                local_shard(p.grad).mul_(scale)
    return norm


def _axes(tensor: Tensor) -> Axes:
    if not isinstance(tensor, DTensor):
        return ()
    mesh = tensor.device_mesh
    names = mesh.mesh_dim_names or ()
    placed = zip(names, tensor.placements, strict=True)
    return tuple(mesh[name] for name, place in placed if not place.is_replicate())


def _over_ranks(square: Tensor, axes: Axes) -> float:
    """The squared norm of tensors of which each rank of the axes holds a part."""
    for axis in axes:
        if axis.size() > 1:
            distributed.all_reduce(square, group=axis.get_group())
    return float(square)
