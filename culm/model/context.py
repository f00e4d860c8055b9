"""What every layer must know, as one small object."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from culm.model.cache import Cache


class Routing(NamedTuple):
    """What the router of one layer did with the N tokens of a batch.

    loss: auxiliary loss, weighted, as a sum over those tokens; () fp32.
    counts: (experts,) fp32, how many of their assignments chose each expert. dropped: () fp32,
    assignments that found their expert full. Padding is in none of them.
    """

    loss: Tensor
    counts: Tensor
    dropped: Tensor


@dataclass
class BlockOutputs:
    """What the parts of one block have to give beside x.

    values: of its attention (B, T, K, D), before they are mixed with those of the first block.
    routing: of its experts.
    """

    values: Tensor | None = None
    routing: Routing | None = None


@dataclass(frozen=True)
class Context:
    """Travels through the layers beside `x: (B, T, E)`.

    positions: (B, T) int64, of each token in its document.
    documents: (B, T) integers; a token sees only its own document. None: one document a row.
    cache: keys and values of earlier tokens; with it, the rows are the B slots from `slot` on:
        neighbours, so that they are read without a copy.
    length: how many cached tokens are looked at; at least the greatest position + 1.
    ends: (B,) int64, the position behind the last real token of each row; what is there and later
        is padding. None: there is none.
    padding: (B, T) bool, tokens that only fill a row of a training batch. None: there are none.
    adapters: rows (N,) that have an adapter of their own, and its number (`culm.adapt.multi_lora`).
    rotations: cosines and sines (B, T, 1, D/2), one pair per distinct rotary embedding.
    embedded: (B, T, E), what the first block read. values: (B, T, K, D), those of its attention.
    outputs: where a part leaves what the model wants beside x; every block has a fresh one.
    routings: what every layer of experts did is added here, if somebody wants to know.
    """

    positions: Tensor
    documents: Tensor | None = None
    cache: Cache | None = None
    slot: int = 0
    length: int = 0
    ends: Tensor | None = None
    padding: Tensor | None = None
    adapters: tuple[Tensor, Tensor] | None = None
    rotations: tuple[tuple[Tensor, Tensor], ...] = ()
    embedded: Tensor | None = None
    values: Tensor | None = None
    outputs: BlockOutputs = field(default_factory=BlockOutputs)
    routings: list[Routing] | None = None

    @staticmethod
    def plain(tokens: Tensor) -> Context:
        """Rows that are one document each, from position 0."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return Context(positions.expand(tokens.shape))

    def record_routing(self, routing: Routing | None) -> None:
        """Add what a layer of experts did, if there are any and somebody wants to know."""
        if self.routings is not None and routing is not None:
            self.routings.append(routing)

    def unrecorded(self) -> Context:
        """The same for a model whose experts are not trained: nobody records what they did."""
        return replace(self, routings=None)

    def for_block(self) -> Context:
        """The same with a fresh place for what a block has to give beside x."""
        return replace(self, outputs=BlockOutputs())
