"""What every layer must know, as one small object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from culm.model.layer_cache import LayerCache


class Routing(NamedTuple):
    """What the router of one layer did with the N tokens of a batch.

    loss: auxiliary loss, weighted, as a sum over those tokens; () fp32.
    counts: (experts,) fp32, how many assignments each expert got. dropped: () fp32, assignments
    that found their expert full. Padding is in none of them.
    """

    loss: Tensor
    counts: Tensor
    dropped: Tensor


@dataclass(frozen=True)
class CacheView:
    """The part of a cache that the B rows of a forward continue: neighbouring slots, so that they
    are read without a copy.

    layers: the cache of each layer. slot: of the first row. length: how many entries are attended
    to; at least the greatest position + 1.
    ends: (B,) int64, the position after the last real token of each row; what follows is padding.
    None: there is none.
    """

    layers: Sequence[LayerCache]
    slot: int = 0
    length: int = 0
    ends: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """Facts about the tokens of a forward, from its caller.

    positions: (B, T) int64, of each token in its document.
    documents: (B, T) integers; a token attends to its own document only. None: one document a row.
    padding: (B, T) bool, True for padding in a training batch. None: there is none.
    cache: earlier tokens, which these continue.
    adapters: rows (N,) that have an adapter of their own, and its number (`culm.adapt.multi_lora`).
    routings: a list to which every layer of experts appends what it did. None: nobody records.
    """

    positions: Tensor
    documents: Tensor | None = None
    padding: Tensor | None = None
    cache: CacheView | None = None
    adapters: tuple[Tensor, Tensor] | None = None
    routings: list[Routing] | None = None

    @classmethod
    def plain(cls, tokens: Tensor) -> Context:
        """Rows that are one document each, from position 0; tokens: (B, T, ...)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return cls(positions.expand(tokens.shape[:2]))

    @property
    def view(self) -> CacheView:
        """The cache, where there is one."""
        assert self.cache is not None
        return self.cache

    def unrecorded(self) -> Context:
        """The same for a model whose experts are not trained: nobody records what they did."""
        return replace(self, routings=None)

    def record_routing(self, routing: Routing | None) -> None:
        """Append what a layer of experts did, if there are any and somebody records."""
        if self.routings is not None and routing is not None:
            self.routings.append(routing)


@dataclass
class BlockOutputs:
    """What the parts of one block return besides x.

    values: of its attention (B, T, K, D), before they are mixed with those of the first block.
    routing: of its experts.
    """

    values: Tensor | None = None
    routing: Routing | None = None


@dataclass(frozen=True)
class LayerContext(Context):
    """The context inside the trunk, with what the trunk itself computed.

    rotations: cosines and sines (B, T, 1, D/2), one pair for each distinct rotary embedding.
    inputs: (B, T, E), what the first block read. values: (B, T, K, D), those of its attention.
    outputs: where the parts of a block leave what they give besides x; every block has its own.
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
        """The facts of a caller, extended."""
        return cls(
            context.positions, context.documents, context.padding, context.cache,
            context.adapters, context.routings, rotations, inputs,
        )  # fmt: skip

    def for_block(self) -> LayerContext:
        """The same with outputs of its own."""
        return replace(self, outputs=BlockOutputs())
