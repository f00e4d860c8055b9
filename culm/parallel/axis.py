"""The ranks of one axis of the mesh, and the exchanges between them; or what these would be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.distributed import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

T = TypeVar("T")

if hasattr(distributed, "all_gather_single"):  # PyTorch 2.13 renamed them
    ALL_GATHER, REDUCE_SCATTER = distributed.all_gather_single, distributed.reduce_scatter_single
else:
    ALL_GATHER, REDUCE_SCATTER = (
        distributed.all_gather_into_tensor,
        distributed.reduce_scatter_tensor,
    )


class Axis:
    """Tensors are given and taken along their first dimension.

    size: number of ranks. rank: of this process.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh, self.size, self.rank = mesh, mesh.size(), mesh.get_local_rank()

    def all_gather(self, x: Tensor) -> Tensor:
        """(N, ...) of each rank -> (size * N, ...)."""
        out = x.new_empty((x.shape[0] * self.size, *x.shape[1:]))
        ALL_GATHER(out, x.contiguous(), group=self.mesh.get_group())
        return out

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """(size * N, ...) of each rank -> this rank's (N, ...) of their sum."""
        out = x.new_empty((x.shape[0] // self.size, *x.shape[1:]))
        REDUCE_SCATTER(out, x.contiguous(), group=self.mesh.get_group())
        return out

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the ranks."""
        out = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(out, group=self.mesh.get_group())
        return out

    def all_to_all(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """This many rows for each rank in order -> the rows that all ranks sent to this one."""
        out = x.new_empty((sum(received), *x.shape[1:]))
        group = self.mesh.get_group()
        distributed.all_to_all_single(out, x.contiguous(), received, sent, group=group)
        return out

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """Fill x with what rank `source` of the axis has there."""
        distributed.broadcast(x, group=self.mesh.get_group(), group_src=source)
        return x

    def swap(self, x: Tensor, other: int) -> Tensor:
        """What another rank, which does the same, has in place of x."""
        group, theirs = self.mesh.get_group(), torch.empty_like(x)
        ops = [
            distributed.P2POp(distributed.isend, x, group=group, group_peer=other),
            distributed.P2POp(distributed.irecv, theirs, group=group, group_peer=other),
        ]
        for work in distributed.batch_isend_irecv(ops):
            work.wait()
        return theirs

    def move(self, x: Tensor, source: int, target: int) -> Tensor:
        """What one rank of the axis has in x, in that of another one; others do not call it."""
        if source != target:
            group = self.mesh.get_group()
            if self.rank == source:
                distributed.send(x.contiguous(), group=group, group_dst=target)
            else:
                distributed.recv(x, group=group, group_src=source)
        return x

    def gather_objects(self, value: T) -> list[T]:
        """The value of each rank, in order; pickled, so for small things."""
        found: list[T] = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(found, value, group=self.mesh.get_group())
        return found

    def keep(self, module: nn.Module, name: str, dim: int) -> None:
        """Leave this rank its part of a parameter along a dimension, as a DTensor."""
        whole = module.get_parameter(name)
        own = self.part(whole.detach(), dim).contiguous().clone()
        shard = DTensor.from_local(own, self.mesh, [Shard(dim)], run_check=False)
        setattr(module, name, nn.Parameter(shard, requires_grad=whole.requires_grad))

    def part(self, x: Tensor, dim: int) -> Tensor:
        """This rank's part of what every rank holds; the last parts may be smaller."""
        size = -(-x.shape[dim] // self.size)
        first = min(size * self.rank, x.shape[dim])
        return x.narrow(dim, first, min(size, x.shape[dim] - first))


@dataclass
class SimulatedAxis(Axis):
    """The first rank of an axis without others, for tensors on the meta device.

    sent: bytes that it would send, by kind of exchange: of n ranks, (n - 1) / n of a whole tensor.
    kept: the parameters of which it has a part.
    """

    size: int
    rank: int = 0
    sent: Counter[str] = field(default_factory=Counter)
    kept: set[nn.Parameter] = field(default_factory=set)

    def all_gather(self, x: Tensor) -> Tensor:
        self.sent["all-gather"] += x.nbytes * (self.size - 1)
        return x.new_empty((x.shape[0] * self.size, *x.shape[1:]))

    def reduce_scatter(self, x: Tensor) -> Tensor:
        self.sent["reduce-scatter"] += x.nbytes * (self.size - 1) // self.size
        return x.new_empty((x.shape[0] // self.size, *x.shape[1:]))

    def all_reduce(self, x: Tensor) -> Tensor:
        self.sent["all-reduce"] += 2 * x.nbytes * (self.size - 1) // self.size
        return torch.empty_like(x)

    def all_to_all(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        away = sum(sent) - sent[self.rank]
        self.sent["all-to-all"] += x.nbytes // max(len(x), 1) * away
        return x.new_empty((sum(received), *x.shape[1:]))

    def keep(self, module: nn.Module, name: str, dim: int) -> None:
        whole = module.get_parameter(name)
        own = torch.empty_like(self.part(whole.detach(), dim))
        parameter = nn.Parameter(own, requires_grad=whole.requires_grad)
        setattr(module, name, parameter)
        self.kept.add(parameter)
