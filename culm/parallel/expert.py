"""Expert parallelism (arXiv 2006.16668): each rank holds some of the experts, and tokens travel.

own tokens, sorted by expert --- exchange --- own experts --- exchange back --- own tokens
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from culm.config import SettingError
from culm.dtensor import lies_on, local_shard
from culm.model.mlp.moe import Experts, MixtureOfExperts
from culm.model.transformer import Transformer
from culm.parallel.axis import Axis
from culm.parallel.collectives import exchanged, exchanged_rows
from culm.parallel.mesh import Mesh
from culm.parallel.sequence import SequenceShards


def divide_experts(model: Transformer, axis: Axis, shards: SequenceShards) -> None:
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
                    axis.keep(layer, name, 0)
            experts.forward = Travel(experts, axis, shards)  # type: ignore[method-assign]


class Travel:
    """The forward of experts that lie on several ranks."""

    def __init__(self, experts: Experts, axis: Axis, shards: SequenceShards) -> None:
        self.compute, self.axis, self.shards = experts.forward, axis, shards
        self.experts = experts.gate.experts

    def __call__(self, x: Tensor, ends: Tensor) -> Tensor:
        """x: (M, E), sorted by expert; ends: (experts,), of all experts -> (M, E)."""
        if not self.shards.on:
            return self.compute(x, ends)
        if x.is_meta:
            return self._even(x)
        counts = torch.diff(ends, prepend=ends.new_zeros(1)).view(self.axis.size, -1)
        theirs = exchanged(counts, self.axis)  # (ranks, own experts): rows that come from each
        sent, received = counts.sum(1).tolist(), theirs.sum(1).tolist()
        rows = exchanged_rows(x, sent, received, self.axis)
        owners = torch.arange(counts.shape[1], device=x.device).repeat(self.axis.size)
        order = owners.repeat_interleave(theirs.flatten()).argsort(stable=True)
        own_ends = theirs.sum(0).cumsum(0).to(ends.dtype)
        made = self.compute(rows[order], own_ends)[order.argsort()]
        return exchanged_rows(made, received, sent, self.axis)

    def _even(self, x: Tensor) -> Tensor:
        """For a plan: as many tokens for each expert, since no router has chosen."""
        ranks, own = self.axis.size, self.experts // self.axis.size
        each = [-(-len(x) // ranks)] * ranks
        rows = exchanged_rows(F.pad(x, (0, 0, 0, -len(x) % ranks)), each, each, self.axis)
        ends = torch.empty(own, dtype=torch.int32, device=x.device)
        return exchanged_rows(self.compute(rows, ends), each, each, self.axis)[: len(x)]


def shard_experts(objective: nn.Module, mesh: Mesh) -> None:
    """Shard the experts of this rank over ranks that hold the same ones, or copy them (FSDP2)."""
    copies = mesh.experts["expert_replicate"].size() > 1
    axes = ("expert_replicate", "expert_shard") if copies else ("expert_shard",)
    for module in objective.modules():
        if isinstance(module, Experts):
            # Said, since FSDP2 keeps what no other of its modules is around.
            fully_shard(module, mesh=mesh.experts[axes], reshard_after_forward=True)


def weigh_experts(objective: nn.Module, factor: float) -> None:
    """Scale the gradients of experts.

    factor: tensor-parallel ranks by expert-parallel ones. An expert has got the tokens of all ranks
    of its axis, and FSDP2 averages over the others; gradients of other parameters are sums over
    the tensor-parallel ranks, and averages over the others.
    """
    for parameter in objective.parameters():
        if parameter.grad is not None and lies_on(parameter, "expert"):
            local_shard(parameter.grad).mul_(factor)
