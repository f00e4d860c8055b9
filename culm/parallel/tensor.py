"""Tensor parallelism (arXiv 1909.08053) with sequence parallelism (arXiv 2205.05198).

    x (own tokens) -- norm -- gather -- q k v: columns -- heads -- out: rows -- sum, scatter -- (+)

Which layers are divided, and how, each module says itself (`tensor_parallel`). The embedding and
the output head are divided by ids, and log-probabilities are computed from these parts (loss
parallel). All other modules are on every rank, which computes them for its own tokens or for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from culm.config import SettingError
from culm.dtensor import lies_on, local_shard
from culm.model.attention.part import AttentionModule
from culm.model.linear import Divisible, Linear, Split
from culm.model.mlp.part import FeedForwardModule
from culm.model.transformer import Transformer
from culm.parallel.axis import Axis
from culm.parallel.collectives import gathered, summed, summed_part
from culm.parallel.sequence import SequenceShards

DIMS: dict[Split, int] = {"columns": 0, "rows": 1}


class TensorParallel:
    """A model whose layers are divided over the ranks of the axis "tensor"."""

    def __init__(self, model: Transformer, shards: SequenceShards) -> None:
        self.model, self.shards, self.axis = model, shards, shards.tensor
        for number, block in enumerate(model.every_block):
            self._module(f"blocks.{number}.attention", block.attention)
            if block.mlp.tensor_parallel:
                self._module(f"blocks.{number}.mlp", block.mlp)
        self._ends()

    def _module(self, where: str, module: AttentionModule | FeedForwardModule) -> None:
        """Its input is all tokens; its output is for the tokens of this rank."""
        shards, divided = self.shards, bool(module.tensor_parallel)
        self._divide(where, module, module.tensor_parallel)

        def gather(module: nn.Module, args: tuple) -> tuple:
            return (gathered(args[0], 1, self.axis), *args[1:]) if shards.on else args

        def scatter(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
            if not shards.on:
                return out
            return summed_part(out, 1, self.axis) if divided else shards.own(out)

        module.register_forward_pre_hook(gather)
        module.register_forward_hook(scatter)

    def _divide(self, where: str, module: nn.Module, splits: Mapping[str, Split]) -> None:
        """Raises:
        SettingError: a layer is quantised, or its adapter needs whole rows.
        """
        for name, split in splits.items():
            layer = getattr(module, name)
            if isinstance(layer, nn.Parameter):
                self.axis.keep(module, name, DIMS[split])
            elif isinstance(layer, Divisible):
                inside = layer.divided(split)
                self._divide(f"{where}.{name}", cast(nn.Module, layer), inside)
            elif type(layer) is Linear:
                self._divide_linear(layer, split)
            else:
                raise SettingError(
                    f"parallel.tensor: {where}.{name} is a {type(layer).__name__}, which cannot be "
                    "divided; use data: fsdp, which shards any layer"
                )

    def _divide_linear(self, layer: Linear, split: Split) -> None:
        self.axis.keep(layer, "weight", DIMS[split])
        if layer.bias is not None and split == "columns":
            self.axis.keep(layer, "bias", 0)
        elif layer.bias is not None:
            layer.register_forward_hook(self._bias_once)

    def _bias_once(self, layer: nn.Module, args: tuple, out: Tensor) -> Tensor:
        """What is summed over the ranks has the bias of each of them."""
        assert isinstance(layer.bias, Tensor)
        ranks = self.axis.size
        return out - layer.bias.to(out.dtype) * ((ranks - 1) / ranks) if self.shards.on else out

    def _ends(self) -> None:
        """Divide the embedding and the head by ids, where these divide; each rank embeds and
        normalises its own tokens.
        """
        model, axis = self.model, self.axis
        even = model.config.vocabulary % axis.size == 0
        if even and type(model.head) is Linear and model.config.head == "vocabulary":
            axis.keep(model.embed, "weight", 0)
            if model.config.tied:
                model.head.weight = model.embed.weight
            else:
                axis.keep(model.head, "weight", 0)
            if model.head.bias is not None:
                axis.keep(model.head, "bias", 0)
            shard = VocabularyRanks(self.shards, model.config.vocabulary)
            model.kernels = replace(model.kernels, vocabulary=shard)
            model.head.register_forward_hook(
                lambda module, args, out: gathered(out, -1, axis) if self.shards.on else out
            )
            model.embed.forward = self._embedded  # type: ignore[method-assign, assignment]
        else:
            model.embed.register_forward_pre_hook(self._own_tokens)
        if model.positions is not None:
            model.positions.register_forward_pre_hook(self._own_tokens)

    def _own_tokens(self, module: nn.Module, args: tuple) -> tuple:
        return (self.shards.own(args[0]),)

    def _embedded(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T / ranks, E), the part of this rank; each rank looks up its own ids."""
        table = local_shard(self.model.embed.weight)
        if not self.shards.on:
            return F.embedding(tokens, table)
        ids = tokens - len(table) * self.axis.rank
        known = (ids >= 0) & (ids < len(table))
        found = F.embedding(ids.where(known, 0), table) * known[..., None]
        return summed_part(found, 1, self.axis)


class VocabularyRanks:
    """The ids of the output head that this rank holds (`culm.model.logprobs.VocabularyShard`)."""

    def __init__(self, shards: SequenceShards, vocabulary: int) -> None:
        self.shards, self.axis = shards, shards.tensor
        self.size = vocabulary // self.axis.size

    @property
    def ranks(self) -> int:
        return self.axis.size if self.shards.on else 1

    @property
    def start(self) -> int:
        return self.size * self.axis.rank if self.shards.on else 0

    def sum(self, values: Tensor) -> Tensor:
        return summed(values, self.axis) if self.shards.on else values

    def logsumexp(self, values: Tensor) -> Tensor:
        return gathered(values[None], 0, self.axis).logsumexp(0) if self.shards.on else values


def sum_whole_gradients(parameters: list[nn.Parameter], axis: Axis) -> None:
    """Add up the gradients of parameters that every rank of "tensor" holds: each has found the part
    that comes of its tokens, heads or share of the loss.
    """
    grads = [
        local_shard(p.grad)
        for p in parameters
        if p.grad is not None and not lies_on(p, "tensor") and not lies_on(p, "expert")
    ]
    for dtype in dict.fromkeys(grad.dtype for grad in grads):  # in one order on all ranks
        same = [grad for grad in grads if grad.dtype == dtype]
        flat = axis.all_reduce(torch.cat([grad.flatten() for grad in same]))
        for grad, value in zip(same, flat.split([g.numel() for g in same]), strict=True):
            grad.copy_(value.view_as(grad))
