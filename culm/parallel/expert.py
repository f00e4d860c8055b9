"""Expert parallelism (arXiv 2006.16668): each rank holds some of the experts, and tokens travel.

own tokens, sorted by expert --- exchange --- own experts --- exchange back --- own tokens
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed import DeviceMesh
from torch.distributed.fsdp import fully_shard

from culm.config import SettingError
from culm.dtensor import lies_on, local_shard
from culm.model.mlp.moe import Experts, MixtureOfExperts
from culm.model.transformer import Transformer
from culm.parallel.collectives import exchanged, exchanged_rows
from culm.parallel.mesh import Mesh
from culm.parallel.sequence import SequenceShards
from culm.parallel.whole import shard_parameter


def divide_experts(model: Transformer, axis: DeviceMesh, shards: SequenceShards) -> None:
    """Leave each rank of the axis its share of the experts of every layer.

    Raises:
        SettingError: they are quantised.
    """
    for block in model.every_block:
        if isinstance(block.mlp, MixtureOfExperts):
            experts = block.mlp.experts
            if type(experts) is not Experts:
                raise SettingError(
                    f"parallel.expert: {type(experts).__name__} cannot be divided; set it to 1"
                )
            for layer in (experts.gate, experts.up, experts.down):
                for name, _ in list(layer.named_parameters(recurse=False)):
                    shard_parameter(layer, name, 0, axis)
            experts.forward = Travel(experts, axis, shards)  # type: ignore[method-assign]


class Travel:
    """The forward of experts that lie on several ranks."""

    def __init__(self, experts: Experts, axis: DeviceMesh, shards: SequenceShards) -> None:
        self.compute, self.axis, self.shards = experts.forward, axis, shards

    def __call__(self, x: Tensor, ends: Tensor) -> Tensor:
        """x: (M, E), sorted by expert; ends: (experts,), of all experts -> (M, E)."""
        if not self.shards.on:
            return self.compute(x, ends)
        counts = torch.diff(ends, prepend=ends.new_zeros(1)).view(self.axis.size(), -1)
        theirs = exchanged(counts, self.axis)  # (ranks, own experts): rows that come from each
        sent, received = counts.sum(1).tolist(), theirs.sum(1).tolist()
        rows = exchanged_rows(x, sent, received, self.axis)
        owners = torch.arange(counts.shape[1], device=x.device).repeat(self.axis.size())
        order = owners.repeat_interleave(theirs.flatten()).argsort(stable=True)
        own_ends = theirs.sum(0).cumsum(0).to(ends.dtype)
        made = self.compute(rows[order], own_ends)[order.argsort()]
        return exchanged_rows(made, received, sent, self.axis)


def shard_experts(objective: nn.Module, mesh: Mesh) -> None:
    """Shard the own experts over the ranks that hold the same ones, or replicate them (FSDP2)."""
    copies = mesh.experts["expert_replicate"].size() > 1
    axes = ("expert_replicate", "expert_shard") if copies else ("expert_shard",)
    for module in objective.modules():
        if isinstance(module, Experts):
            fully_shard(module, mesh=mesh.experts[axes])


def weigh_experts(objective: nn.Module, mesh: Mesh) -> None:
    """Divide the gradients of experts by as many ranks as those of other parameters.

    An expert has got the tokens of all ranks of its axis, and FSDP2 averages over the others.
    """
    if mesh.expert.size() == 1:
        return
    factor = mesh.tensor.size() / mesh.expert.size()
    for parameter in objective.parameters():
        if parameter.grad is not None and lies_on(parameter, "expert"):
            local_shard(parameter.grad).mul_(factor)
