"""Keys and values of earlier tokens, in slots of equal length."""

from __future__ import annotations

import torch
from torch import Tensor

from culm.model.context import Context


class LayerCache:
    """One layer's keys and values: (slots, K, places, D) each."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, k: Tensor, v: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Store k, v: (B, T, K, D) at `context.positions`; give (B, K, S, D) up to its length.

        Rows must be the slots 0..B-1 in order or a copy is made; the engine keeps them so.
        """
        assert context.rows is not None
        rows = context.rows
        self.keys[rows[:, None], :, context.positions] = k.to(self.keys.dtype)
        self.values[rows[:, None], :, context.positions] = v.to(self.values.dtype)
        return self._seen(self.keys, context), self._seen(self.values, context)

    def _seen(self, stored: Tensor, context: Context) -> Tensor:
        assert context.rows is not None
        return stored[context.rows, :, : context.length]


class Cache:
    """The caches of all layers, in `slots` rows of `places` tokens."""

    def __init__(self, layers: list[LayerCache], slots: int, places: int) -> None:
        self.layers, self.slots, self.places = layers, slots, places

    def move(self, source: int, target: int) -> None:
        """Copy one slot over another."""
        for layer in self.layers:
            layer.keys[target] = layer.keys[source]
            layer.values[target] = layer.values[source]

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(2 * layer.keys.nbytes for layer in self.layers)


def contiguous(
    slots: int, places: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> LayerCache:
    """An empty cache for grouped-query attention."""
    shape = (slots, kv_heads, places, head_dim)
    return LayerCache(
        torch.zeros(shape, dtype=dtype, device=device),
        torch.zeros(shape, dtype=dtype, device=device),
    )
