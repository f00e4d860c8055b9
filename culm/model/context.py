"""What every layer must know, as one small object."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from culm.model.cache import Cache


@dataclass(frozen=True)
class Context:
    """Travels through the layers beside `x: (B, T, E)`.

    positions: (B, T) int64, of each token in its document.
    documents: (B, T) integers; a token sees only its own document. None: one document a row.
    cache: keys and values of earlier tokens; with it, the rows are the B slots from `slot` on:
        neighbours, so that they are read without a copy.
    length: how many cached tokens are looked at; at least the greatest position + 1.
    adapters: rows (N,) that have an adapter of their own, and its number (`culm.adapt.resident`).
    rotations: cosines and sines (B, T, 1, D/2), one pair per distinct rotary embedding.
    """

    positions: Tensor
    documents: Tensor | None = None
    cache: Cache | None = None
    slot: int = 0
    length: int = 0
    adapters: tuple[Tensor, Tensor] | None = None
    rotations: tuple[tuple[Tensor, Tensor], ...] = ()

    @staticmethod
    def plain(tokens: Tensor) -> Context:
        """Rows that are one document each, from position 0."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return Context(positions.expand(tokens.shape))

    def with_rotations(self, rotations: tuple[tuple[Tensor, Tensor], ...]) -> Context:
        return replace(self, rotations=rotations)
