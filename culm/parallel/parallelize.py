"""Put a layout on a built objective, from outside: the model's code does not know.

The order is always the same, and stands in `parallelize` alone:

    tensor parallel -> pipeline -> activation checkpointing -> compile -> FSDP2 or DDP
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch._functorch import config as functorch
from torch.distributed import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from culm.batch import Batch, Loss, Sums
from culm.config import SettingError
from culm.model import logprobs
from culm.model.transformer import Transformer
from culm.parallel.check import check_divisible, check_layout, check_pipeline
from culm.parallel.checkpointing import KEPT, Checkpointing, checkpoint_blocks, trunks_of
from culm.parallel.clip import Norm, clip
from culm.parallel.context import RowRanks, attention_of
from culm.parallel.expert import divide_experts, shard_experts, weigh_experts
from culm.parallel.mesh import Axes, Mesh
from culm.parallel.phases import phase
from culm.parallel.pipeline import Pipeline
from culm.parallel.pulse import wait_while_compiling
from culm.parallel.ranks import Ranks
from culm.parallel.sequence import SequenceShards, hold_parts
from culm.parallel.settings import ParallelConfig
from culm.parallel.tensor import TensorParallel, sum_whole_gradients


class Parallel:
    """An objective on its ranks: forward and backward of a step, with gradients summed over all."""

    def __init__(self, objective: nn.Module, ranks: Ranks = Ranks()) -> None:
        self.objective, self.ranks = objective, ranks
        self.axes = None if ranks.mesh is None else ranks.mesh.axes
        self.pipeline: Pipeline | None = None
        self._call: Callable[[Batch], Loss] = objective

    def replicate(self) -> None:
        """Copies of the weights on all ranks, whose gradients are averaged."""
        # Buffers are the same on all ranks without being sent: packed weights, above all.
        with warnings.catch_warnings():  # PyTorch 2.13 renamed the argument
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            self._call = DistributedDataParallel(
                self.objective,
                process_group=self.ranks.mesh and self.ranks.mesh.gradients.get_group(),
                gradient_as_bucket_view=True, broadcast_buffers=False,
            )  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the objective is."""
        return next(self.objective.parameters()).device

    def gradients(
        self, batches: Sequence[Batch], counts: Mapping[str, float], loss_scale: float = 1.0
    ) -> Sums:
        """Leave the gradients of a step in the parameters, and give the sums of this rank.

        counts: of the whole step, over micro-batches and ranks. loss_scale: by which gradients are
        multiplied. One micro-batch is on the device at a time; of a pipeline, all of a step are.
        """
        alike = 1 if self.axes is None else self.axes.tensor.size
        # Data-parallel wrappers average gradients; a sum is needed. Tensor-parallel ranks compute
        # the same loss, and each of them counts for its share.
        scale = loss_scale * self.ranks.count / alike
        if self.pipeline is not None:
            sums = self.pipeline.gradients(batches, counts, scale)
        else:
            sums = self._accumulated(batches, counts, scale)
        if self.axes is not None and alike > 1:
            sum_whole_gradients(list(self.objective.parameters()), self.axes.tensor)
        if self.axes is not None and self.axes.expert.size > 1:
            weigh_experts(self.objective, alike / self.axes.expert.size)
        return sums

    def _accumulated(
        self, batches: Sequence[Batch], counts: Mapping[str, float], scale: float
    ) -> Sums:
        """One micro-batch after the other."""
        sums, device = Sums(), self.device
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with self._sync(last):
                with phase("forward", self.ranks.pulse):
                    loss = self._forward(batch.to(device), last)
                with phase("backward", self.ranks.pulse):
                    (loss.mean(counts) * scale).backward()
            sums.add(loss)
        return sums

    def clip(self, parameters: list[nn.Parameter], limit: float) -> float:
        """Scale the gradients down to the norm `limit` at most; gives the norm before."""
        return clip(parameters, limit, self.norm(), self.counts)

    def norm(self) -> Norm:
        """For tensors of which this rank may have a part."""
        return Norm(None if self.pipeline is None else self.pipeline.axis)

    def counts(self, parameter: nn.Parameter) -> bool:
        """Whether a norm has this parameter from this rank, where several have it."""
        return self.pipeline is None or self.pipeline.counts_here(parameter)

    def _forward(self, batch: Batch, last: bool) -> Loss:
        """The loss of one micro-batch; gradients are exchanged after the last one of a step."""
        for module in self.objective.modules():
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(last, recurse=False)
        return self._call(batch)

    def _sync(self, last: bool) -> AbstractContextManager[None]:
        if isinstance(self._call, DistributedDataParallel) and not last:
            return self._call.no_sync()
        return nullcontext()


def parallelize(
    objective: nn.Module,
    ranks: Ranks = Ranks(),
    settings: ParallelConfig = ParallelConfig(),
    *,
    activation_checkpointing: Checkpointing = "none",
    compile: bool = False,
) -> Parallel:
    """The one order in which an objective is wrapped, whatever it owns.

    Raises:
        SettingError: it owns a parameter that no module shards, or a layer that cannot be divided.
    """
    parallel = Parallel(objective, ranks)
    if ranks.mesh is not None:
        check_divisible(objective, settings)
        axes = ranks.mesh.axes
        if axes.pipeline.size > 1:
            check_pipeline(objective, settings, ranks.mesh.gradients.size(), compile)
            parallel.pipeline = Pipeline(objective, axes, shards_of(axes, settings), settings)
        divide(objective, axes, settings)
        if parallel.pipeline is not None:
            parallel.pipeline.drop()
    if activation_checkpointing in ("selective", "full"):
        checkpoint_blocks(objective, KEPT if activation_checkpointing == "selective" else ())
    if compile:
        if ranks.processes > 1:
            wait_while_compiling(ranks.pulse)
        compile_blocks(objective)
        given = activation_checkpointing
        functorch.activation_memory_budget = given if isinstance(given, float) else 1.0
    if ranks.mesh is not None:
        _exchange_gradients(parallel, ranks.mesh, settings)
    return parallel


def _exchange_gradients(parallel: Parallel, mesh: Mesh, settings: ParallelConfig) -> None:
    """Between the ranks that hold the same weights.

    Those with the same experts may be others than those with the same part of the matmuls: with
    tensor=4 and expert=2, two ranks have copies of each expert, and no two of any other part.
    """
    exchanged = mesh.gradients.size() > 1
    whole = settings.tensor == settings.expert == settings.pipeline == 1
    if exchanged and settings.data == "ddp" and whole:
        parallel.replicate()
        return
    # DDP takes no divided parameters: with shards of one rank, FSDP2 replicates them.
    if settings.expert > 1 and (exchanged or mesh.same_experts > 1):
        shard_experts(parallel.objective, mesh)
    if exchanged:
        copies = mesh.weights["replicate"].size() > 1
        names = ("replicate", "shard") if copies else ("shard",)
        shard(parallel.objective, mesh.weights[names])


def divide(objective: nn.Module, axes: Axes, settings: ParallelConfig) -> None:
    """Divide each model of an objective over the ranks that compute a row together."""
    tensor, context, expert, _ = axes
    if tensor.size == context.size == expert.size == 1:
        return
    for model in _models(objective):
        check_layout(model, settings)
        shards = shards_of(axes, settings)
        if context.size > 1:
            model.kernels = replace(model.kernels, rows=RowRanks(shards))
        hold_parts(model, shards)
        model.whole = partial(shards.off, model, model.whole)
        if tensor.size > 1:
            TensorParallel(model, shards)
        if expert.size > 1:
            divide_experts(model, expert, shards)


def shards_of(axes: Axes, settings: ParallelConfig) -> SequenceShards:
    """How the ranks that compute a row together divide its tokens."""
    attention = attention_of(settings.context_method, axes.context)
    balanced = settings.context_method != "ulysses" and axes.context.size > 1
    return SequenceShards(axes.tensor, axes.context, attention, balanced)


def shard(objective: nn.Module, mesh: DeviceMesh) -> None:
    """Each rank holds a shard of every parameter; buffers, such as packed weights, stay whole."""
    for trunk in trunks_of(objective):
        for block in trunk.every_block:
            fully_shard(block, mesh=mesh)
    for model in _models(objective):
        # What is outside the blocks stays gathered until the backward, so that the head, which
        # reads what `hidden` returns, finds its weights.
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        for method in model.forwards:
            register_fsdp_forward_method(model, method)
        # By default FSDP2 prefetches in the reverse order of all forwards since the last backward,
        # and ranks that sampled different numbers of tokens made different ones: a deadlock.
        for before, after in pairwise([model, *model.every_block, model]):
            cast(FSDPModule, after).set_modules_to_backward_prefetch([cast(FSDPModule, before)])
    for module in _outside(objective):
        fully_shard(module, mesh=mesh)


def _models(objective: nn.Module) -> list[Transformer]:
    return [module for module in objective.modules() if isinstance(module, Transformer)]


def _outside(objective: nn.Module) -> Iterator[nn.Module]:
    """The objective's own modules that are no Transformer, such as a head, if they have parameters.

    Raises:
        SettingError: a parameter belongs to the objective itself, which is no unit of sharding.
    """
    for child in objective.children():
        if not isinstance(child, Transformer) and any(True for _ in child.parameters()):
            yield child
    for name, _ in objective.named_parameters(recurse=False):
        raise SettingError(f"parallel: put the parameter {name} into a module, which is sharded")


def compile_blocks(objective: nn.Module) -> None:
    """Compile the code of one block, used for all, and the passes over logits."""
    torch._dynamo.config.cache_size_limit = max(32, torch._dynamo.config.cache_size_limit)
    reduce, differentiate = (torch.compile(f) for f in (logprobs.reduce, logprobs.differentiate))
    for model in _models(objective):
        model.kernels = replace(model.kernels, reduce=reduce, differentiate=differentiate)
    for trunk in trunks_of(objective):
        for block in trunk.every_block:
            block.compile(dynamic=False)
