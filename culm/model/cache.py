"""Keys and values of earlier tokens, in slots of equal length."""

from __future__ import annotations

import torch
from torch import Tensor

from culm.model.context import Context


class LayerCache:
    """One layer's keys and values: (slots, K, length, D) each."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, k: Tensor, v: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Store k, v: (B, T, K, D) at `context.positions`; give views (B, K, S, D) of all."""
        slots = slice(context.slot, context.slot + k.shape[0])
        keys, values = self.keys[slots], self.values[slots]
        rows = torch.arange(k.shape[0], device=k.device)[:, None]
        keys[rows, :, context.positions] = k.to(keys.dtype)
        values[rows, :, context.positions] = v.to(values.dtype)
        return keys[:, :, : context.length], values[:, :, : context.length]


class Cache:
    """The caches of all layers, in `slots` rows of `length` tokens."""

    def __init__(self, layers: list[LayerCache], slots: int, length: int) -> None:
        self.layers, self.slots, self.length = layers, slots, length

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of one slot over another's."""
        for layer in self.layers:
            layer.keys[target, :, :tokens] = layer.keys[source, :, :tokens]
            layer.values[target, :, :tokens] = layer.values[source, :, :tokens]

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(2 * layer.keys.nbytes for layer in self.layers)


def contiguous(
    slots: int, length: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> LayerCache:
    """An empty cache for grouped-query attention."""
    shape = (slots, kv_heads, length, head_dim)
    return LayerCache(
        torch.zeros(shape, dtype=dtype, device=device),
        torch.zeros(shape, dtype=dtype, device=device),
    )
