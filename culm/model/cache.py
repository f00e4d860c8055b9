"""What attention stores of earlier tokens, in slots: one per sequence.

Each attention builds the cache that it needs (`AttentionModule.cache`):

    FullCache       keys and values, or latents, of all tokens
    QuantizedCache  the same keys and values in few bits (`culm.model.quantized_cache`)
    RollingCache    keys and values of the last tokens only, for a window
    StateCache      a state of fixed size, for attention without softmax
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from culm.model.context import CacheView, Context
from culm.model.layer_cache import LayerCache, in_cache_dtype


class FullCache(LayerCache):
    """Entry j of a slot is position j. tensors: (slots, K, length, D) each, as keys and values.

    An entry after the last token of a slot is never seen before it is written again, so a sequence
    is cut (rejected tokens of speculative decoding) by continuing at an earlier position.
    """

    def update(self, context: Context, *new: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Store tensors (B, T, K, D) at `context.positions`.

        Returns views (B, K, S, D) of all entries, and their positions: (S,).
        """
        view, rows = context.view, torch.arange(new[0].shape[0], device=new[0].device)[:, None]
        views = []
        for tensor, fresh in zip(self.tensors, new, strict=True):
            stored = tensor[view.slot : view.slot + fresh.shape[0]]
            seen, fresh = stored[:, :, : view.length], in_cache_dtype(fresh, stored.dtype)
            if fresh.shape[1] == view.length:  # these are the first tokens
                seen.copy_(fresh.transpose(1, 2))
            else:
                stored[rows, :, context.positions] = fresh
            views.append(seen)
        return tuple(views), torch.arange(view.length, device=new[0].device)

    def copy(self, source: int, target: int, tokens: int) -> None:
        for tensor in self.tensors:
            tensor[target, :, :tokens] = tensor[source, :, :tokens]


class RollingCache(LayerCache):
    """The first `sink_tokens` tokens of a sequence and the last ones, in a ring.

    tensors: (slots, K, s + ring, D) each, where s = sink_tokens. Position p is entry p, or entry
    s + (p - s) mod ring from s on. A sequence may be rolled back by up to ring - window tokens, if
    the ring is larger than the window (`rollback` of `Trunk.cache`).
    """

    def __init__(self, tensors: Sequence[Tensor], sink_tokens: int = 0) -> None:
        super().__init__(tensors)
        entries = tensors[0].shape[2]
        self.sink_tokens, self.ring = sink_tokens, entries - sink_tokens
        shape = (tensors[0].shape[0], entries)
        self.at = torch.full(shape, -1, dtype=torch.int64, device=tensors[0].device)

    def update(self, context: Context, *new: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Store tensors (B, T, K, D) at `context.positions`, consecutive in a row.

        Returns (B, K, S, D) of what the new tokens may see, and the positions of these entries:
        (B, S), -1 for an empty one.
        """
        place = context.view
        rows = slice(place.slot, place.slot + new[0].shape[0])
        start, at = context.positions[:, :1], self.at[rows]
        before = at.where(at < start, -1)  # of an earlier sequence, or of one that was cut
        end = context.positions[:, -1:] + 1
        end = end if place.ends is None else end.minimum(place.ends[:, None])
        last = self._last(end, at.device)
        index = last - start  # of the new token that belongs into an entry
        taken, index = (index >= 0) & (last >= 0), index.clamp_min(0)
        single = new[0].shape[1] == 1  # nothing that it overwrites can still be seen
        whole = []
        for tensor, fresh in zip(self.tensors, new, strict=True):
            view, fresh = tensor[rows], in_cache_dtype(fresh, tensor.dtype).transpose(1, 2)
            whole.append(view if single else torch.cat((view, fresh), dim=2))
            places = index[:, None, :, None].expand(-1, *fresh.shape[1:2], -1, fresh.shape[3])
            view.copy_(fresh.gather(2, places).where(taken[:, None, :, None], view))
        self.at[rows] = last.where(taken, before)
        return tuple(whole), self.at[rows] if single else torch.cat((before, context.positions), 1)

    def _last(self, end: Tensor, device: torch.device) -> Tensor:
        """(B, sink_tokens + ring): the last position below `end` (B, 1) that each entry is for."""
        head = torch.arange(self.sink_tokens, device=device).expand(end.shape[0], -1)
        ring = torch.arange(self.ring, device=device)
        behind = (end - self.sink_tokens - 1 - ring) % self.ring
        tail = end - 1 - behind
        return torch.cat(
            (head.where(head < end, -1), tail.where(tail >= self.sink_tokens, -1)), dim=1
        )

    def copy(self, source: int, target: int, tokens: int) -> None:
        for tensor in (*self.tensors, self.at):
            tensor[target] = tensor[source]


class StateCache(LayerCache):
    """A state for each slot, whatever the length. tensors: (slots, ...) each."""

    def read(self, context: Context) -> tuple[Tensor, ...]:
        """The states (B, ...) before `context.positions`; zero where a sequence starts."""
        new = context.positions[:, 0] == 0
        rows = slice(context.view.slot, context.view.slot + len(new))
        return tuple(
            tensor[rows].masked_fill(new.view(-1, *[1] * (tensor.dim() - 1)), 0)
            for tensor in self.tensors
        )

    def write(self, context: Context, *states: Tensor) -> None:
        """The states (B, ...) after the new tokens."""
        for tensor, state in zip(self.tensors, states, strict=True):
            slot = context.view.slot
            tensor[slot : slot + state.shape[0]] = state.to(tensor.dtype)

    def copy(self, source: int, target: int, tokens: int) -> None:
        for tensor in self.tensors:
            tensor[target] = tensor[source]


class Cache:
    """The caches of all layers, in `slots` rows of `length` tokens."""

    def __init__(self, layers: Sequence[LayerCache], slots: int, length: int) -> None:
        self.layers, self.slots, self.length = layers, slots, length

    def view(self, length: int, slot: int = 0, ends: Tensor | None = None) -> CacheView:
        """The rows from `slot` on, of which `length` entries are attended to; see `CacheView`."""
        return CacheView(self.layers, slot, length, ends)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of one slot over another's."""
        for layer in self.layers:
            layer.copy(source, target, tokens)

    def clear(self, slot: int) -> None:
        """Make one slot empty."""
        for layer in self.layers:
            layer.clear(slot)

    @property
    def bytes(self) -> int:
        """Memory in use."""
        return sum(layer.bytes for layer in self.layers)
