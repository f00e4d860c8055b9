"""Put a layout on a built objective, from outside: the model's code does not know.

Order, always: tensor parallel -> activation checkpointing -> compile -> FSDP or DDP.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.distributed import DeviceMesh
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from culm.config import Config
from culm.model import logprobs
from culm.model.logprobs import Kernels
from culm.model.transformer import Transformer
from culm.parallel.sharded import full_tensor


class ParallelConfig(Config):
    """replicas: how data-parallel ranks keep the weights: each a copy (ddp) or a share (fsdp).

    Used when a launcher started several processes; one process ignores it.
    """

    replicas: Literal["ddp", "fsdp"] = "ddp"


class Parallel:
    """An objective as the loop calls it: `forward(batch)`, syncing gradients only when told."""

    def __init__(self, objective: nn.Module, ranks: int, parallel: ParallelConfig) -> None:
        self.objective = objective
        self._call: Callable = objective
        if ranks > 1 and parallel.replicas == "ddp":
            # Buffers are the same on all ranks without being sent: packed weights, above all.
            self._call = DistributedDataParallel(
                objective, gradient_as_bucket_view=True, broadcast_buffers=False
            )
        elif ranks > 1:
            for model in _models(objective):
                _shard(model, init_device_mesh(model.device.type, (ranks,)))

    def forward(self, batch, last: bool):
        """The loss of one micro-batch; gradients are exchanged after the last of a step."""
        for module in self.objective.modules():
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(last, recurse=False)
        return self._call(batch)

    def sync(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one micro-batch."""
        if isinstance(self._call, DistributedDataParallel) and not last:
            return self._call.no_sync()
        return nullcontext()

    def clip(self, parameters: list[nn.Parameter], limit: float) -> float:
        """Scale the gradients down to the norm `limit` at most; the norm before."""
        return float(full_tensor(nn.utils.clip_grad_norm_(parameters, limit)))


def _models(objective: nn.Module) -> list[Transformer]:
    return [module for module in objective.modules() if isinstance(module, Transformer)]


def _shard(model: Transformer, mesh: DeviceMesh) -> None:
    for block in model.every_block:
        fully_shard(block, mesh=mesh)
    # What is outside the blocks stays whole until the backward, so that the head, which reads what
    # `hidden` returns, finds its weights.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for method in ("hidden", "mtp_hidden"):
        register_fsdp_forward_method(model, method)


def recompute(objective: nn.Module) -> None:
    """Keep only the input of each block; compute the rest again in the backward."""
    for model in _models(objective):
        for block in model.every_block:
            # The method and not a module around the block, whose parameters keep their names.
            whole = partial(checkpoint, block.forward, use_reentrant=False)
            block.forward = whole  # type: ignore[method-assign]


def compile_blocks(objective: nn.Module) -> None:
    """Compile the code of one block, used for all, and the passes over logits."""
    torch._dynamo.config.cache_size_limit = max(32, torch._dynamo.config.cache_size_limit)
    kernels = Kernels(torch.compile(logprobs.reduce), torch.compile(logprobs.differentiate))
    for model in _models(objective):
        model.kernels = kernels
        for block in model.every_block:
            block.compile(dynamic=False)
