"""The norm of gradients whose parts lie on several ranks, and its limit."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.distributed import DeviceMesh
from torch.distributed.tensor import DTensor

from culm.dtensor import local_shard
from culm.parallel.axis import Axis

Axes = tuple[DeviceMesh, ...]  # over whose ranks a tensor is divided


def clip_sharded(
    parameters: list[nn.Parameter],
    limit: float,
    pipeline: Axis | None = None,
    counts: Callable[[nn.Parameter], bool] = lambda parameter: True,
) -> float:
    """Scale the gradients down to the norm `limit` at most; gives the norm before.

    As torch.nn.utils.clip_grad_norm_, which takes no tensors of different meshes at once.

    pipeline: ranks with other parameters. counts: whether the norm has a parameter from this rank,
    where several have it.
    """
    found: dict[Axes, list[Tensor]] = {}
    for p in parameters:
        if p.grad is not None and counts(p):
            found.setdefault(_axes(p.grad), []).append(local_shard(p.grad))
    square = sum(_square(grads, axes) for axes, grads in found.items())
    if pipeline is not None:
        own = torch.tensor(square, dtype=torch.float64, device=parameters[0].device)
        square = float(pipeline.all_reduce(own))
    norm = math.sqrt(square)
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


def _square(grads: list[Tensor], axes: Axes) -> float:
    """The squared norm of gradients of which each rank of the axes holds a part."""
    square = nn.utils.get_total_norm(grads).double().square()
    for axis in axes:
        if axis.size() > 1:
            distributed.all_reduce(square, group=axis.get_group())
    return float(square)
