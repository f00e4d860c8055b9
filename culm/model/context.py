"""What the layers know about the rows of a batch: facts of the caller, and results of the trunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from culm.model.layer_cache import LayerCache
from culm.model.score_rule import Backend, ScoreRule

LOADS = "experts."  # before the number of a layer: the name of the loads of its experts


class Routing(NamedTuple):
    """What the router of one layer did with the N tokens of a batch.

    loss: weighted auxiliary loss, summed over those tokens; () fp32.
    counts: (experts,) fp32, assignments of each expert. dropped: () fp32, assignments to an expert
    that was full. Padding is in none of them.
    """

    loss: Tensor
    counts: Tensor
    dropped: Tensor


class Record(NamedTuple):
    """What a part of a model reports of the tokens of a batch; padding is not in it.

    total: () fp32, a sum over those tokens. weight: of its mean in the loss; None: it is only
    reported.
    """

    name: str
    total: Tensor
    weight: float | None = None


class SequenceAttention(Protocol):
    """Attention over rows of which each rank holds a part (`culm.parallel.context`)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule, backend: Backend) -> Tensor:
        """`culm.model.attend.attend` for the part of this rank; all ranks of the axis call it."""
        ...


@dataclass(frozen=True)
class CacheView:
    """The part of a cache that the B rows of a forward continue: neighbouring slots, which are read
    without a copy.

    layers: the cache of each layer. slot: of the first row. length: number of entries that are
    read; at least the largest position + 1.
    ends: (B,) int64, the position after the last real token of each row; padding follows. None:
    no padding.
    """

    layers: Sequence[LayerCache]
    slot: int = 0
    length: int = 0
    ends: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """Facts about the tokens of a forward, from its caller.

    positions: (B, T) int64, of each token in its document.
    documents: (B, T) integers; a token sees its own document only, whose tokens are neighbours.
        None: one document per row.
    padding: (B, T) bool, True for padding, which experts do not count. None: no padding.
    cache: earlier tokens, which these continue. None: nothing is stored.
    causal: whether a token sees those before it only, and not those after it.
    adapters: rows (N,) with an adapter, and the adapter's number (`culm.adapt.multi_lora`).
    routings: a list to which every layer of experts appends what it did. None: not recorded.
    records: a list for whatever else parts of the model report. None: not recorded.
    first: (B, T) int64, the first position that each token sees over a cache, as `documents` says
        without one. None: all of them.
    sequence: attention, where these tokens are a part of the rows and other ranks have the others.
    embeddings: inputs that stand in place of token embeddings: (B, T) bool, where; (B, T, E).
    """

    positions: Tensor
    documents: Tensor | None = None
    padding: Tensor | None = None
    cache: CacheView | None = None
    adapters: tuple[Tensor, Tensor] | None = None
    routings: list[Routing] | None = None
    records: list[Record] | None = None
    first: Tensor | None = None
    sequence: SequenceAttention | None = None
    causal: bool = True
    embeddings: tuple[Tensor, Tensor] | None = None

    @classmethod
    def plain(cls, tokens: Tensor) -> Context:
        """Rows that are one document each, from position 0; tokens: (B, T, ...)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return cls(positions.expand(tokens.shape[:2]))

    @property
    def view(self) -> CacheView:
        """The cache; an error if there is none."""
        assert self.cache is not None
        return self.cache

    def unrecorded(self) -> Context:
        """The same for a model that is not trained: what its parts did is not recorded."""
        return replace(self, routings=None, records=None)

    def record_routing(self, routing: Routing | None) -> None:
        """Append what a layer of experts did, if there are experts and a list for them."""
        if self.routings is not None and routing is not None:
            self.routings.append(routing)

    def record(self, *records: Record) -> None:
        """Append what a part of the model reports, if there is a list for it."""
        if self.records is not None:
            self.records.extend(records)


@dataclass
class BlockOutputs:
    """What the parts of one block return in addition to x.

    values: of its attention (B, T, K, D), before they are mixed with those of the first block.
    routing: of its experts.
    """

    values: Tensor | None = None
    routing: Routing | None = None


@dataclass(frozen=True)
class LayerContext(Context):
    """The context inside the trunk, with what the trunk itself computed.

    rotations: cosines and sines (B, T, 1, D/2), one pair for each distinct rotary embedding.
    inputs: (B, T, E), read by the first block. values: (B, T, K, D), of its attention.
    outputs: where the parts of a block leave what they return besides x; each block has its own.
    """

    rotations: tuple[tuple[Tensor, Tensor], ...] = ()
    inputs: Tensor | None = None
    values: Tensor | None = None
    outputs: BlockOutputs = field(default_factory=BlockOutputs)

    @classmethod
    def of(
        cls,
        context: Context,
        rotations: tuple[tuple[Tensor, Tensor], ...] = (),
        inputs: Tensor | None = None,
    ) -> LayerContext:
        """The context of the first block, from that of the caller."""
        return cls(
            context.positions, context.documents, context.padding, context.cache,
            context.adapters, context.routings, context.records, context.first, context.sequence,
            context.causal, rotations=rotations, inputs=inputs,
        )  # fmt: skip

    def for_block(self) -> LayerContext:
        """The same with empty outputs, for one block."""
        return replace(self, outputs=BlockOutputs())
