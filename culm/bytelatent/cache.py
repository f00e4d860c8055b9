"""The cache of a patch model: what it stores of earlier bytes, besides keys and values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from culm.model.layer_cache import CacheSpec, LayerCache

# By name: the shape of one entry and its dtype; None: that of the activations.
Kept = Mapping[str, tuple[tuple[int, ...], torch.dtype | None]]


class PatchCache(LayerCache):
    """Named values of the bytes, or of the patches, of each slot: (slots, length + 1, ...).

    Entry j is byte j or patch j. Like the entries of a `FullCache`, those after the end of a slot
    are never read before they are written again, so a sequence is cut by continuing at an earlier
    position. The last entry takes what belongs to no patch.
    """

    def __init__(self, spec: CacheSpec, kept: Kept) -> None:
        entries = (spec.slots, spec.length + 1)
        self._named = {
            name: torch.zeros((*entries, *shape), dtype=dtype or spec.dtype, device=spec.device)
            for name, (shape, dtype) in kept.items()
        }
        super().__init__(list(self._named.values()))

    def write(self, name: str, slot: int, places: Tensor, values: Tensor) -> None:
        """Store values (B, N, ...) of the rows from `slot` on at places (B, N)."""
        kept = self._named[name]
        rows = torch.arange(slot, slot + places.shape[0], device=places.device)[:, None]
        kept[rows, places] = values.to(kept.dtype)

    def read(self, name: str, slot: int, places: Tensor) -> Tensor:
        """(B, ..., *shape): the values of the rows from `slot` on at places (B, ...)."""
        rows = torch.arange(slot, slot + places.shape[0], device=places.device)
        return self._named[name][rows.view(-1, *[1] * (places.dim() - 1)), places]

    def copy(self, source: int, target: int, tokens: int) -> None:
        for tensor in self.tensors:  # a slot has no more patches than bytes
            tensor[target, :tokens] = tensor[source, :tokens]
