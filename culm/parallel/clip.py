"""The norm of gradients whose parts lie on several ranks, and its limit."""

from __future__ import annotations

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from culm.dtensor import lies_on, local_shard
from culm.parallel.mesh import Mesh

AXES = ("shard", "tensor")


def clip_sharded(parameters: list[nn.Parameter], limit: float, mesh: Mesh) -> float:
    """Scale the gradients down to the norm `limit` at most; gives the norm before.

    As torch.nn.utils.clip_grad_norm_, which takes no tensors of different meshes at once.
    """
    found: dict[tuple[bool, ...], list[Tensor]] = {}
    for p in parameters:
        if p.grad is not None:
            divided = tuple(lies_on(p.grad, axis) for axis in AXES)
            found.setdefault(divided, []).append(local_shard(p.grad))
    norm = _norm(found, mesh)
    if (scale := limit / (norm + 1e-6)) < 1:
        for grads in found.values():
            for grad in grads:
                grad.mul_(scale)
    return norm


def _norm(found: dict[tuple[bool, ...], list[Tensor]], mesh: Mesh) -> float:
    """found: gradients on this rank, by the axes over which they are divided."""
    kinds = [(first, second) for first in (False, True) for second in (False, True)]
    squares = torch.stack(
        [nn.utils.get_total_norm(found.get(kind, [])).double().square() for kind in kinds]
    ).to(mesh.rows.device_type)
    for place, axis in enumerate(AXES):
        divided = torch.tensor([kind[place] for kind in kinds], device=squares.device)
        if mesh.weights[axis].size() > 1:
            part = squares * divided
            distributed.all_reduce(part, group=mesh.weights[axis].get_group())
            squares = part.where(divided, squares)
    return float(squares.sum().sqrt())
