"""Tensors of which each rank holds a part: the part, the whole, and how to make one."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor; every rank takes part where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, with its gradient; all of it where it is not
    sharded.
    """
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, the same on all ranks, placed and sharded as `parameter`."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(
            value, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    return value


def lies_on(tensor: Tensor, axis: str) -> bool:
    """Whether a tensor is sharded over the ranks of this axis of the mesh."""
    return isinstance(tensor, DTensor) and axis in (tensor.device_mesh.mesh_dim_names or ())
