"""Keys and values in few bits (KIVI, arXiv 2402.02750).

Channels of keys differ in size, and some are outliers, so keys share a scale per channel over a
group of tokens; values share one per token. A group is quantised when it is full; until then its
tokens stay exact, so that the result does not depend on how many tokens come at once. Layers are
dequantised one at a time, while they are read.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from culm.model.context import Context
from culm.model.layer_cache import FP16_MAX, LayerCache, in_cache_dtype

GROUP = 32  # tokens
CacheKind = Literal["plain", "int8", "int4"]
BITS: dict[CacheKind, int | None] = {"plain": None, "int8": 8, "int4": 4}


class Rounded(NamedTuple):
    """Numbers as zero + scale * code, in G groups.

    codes: (slots, K, G, 32, D) uint8, or D / 2 with two in a byte. scale, zero: of each
    channel (slots, K, G, 1, D) or of each token (slots, K, G, 32, 1).
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor


class QuantizedCache(LayerCache):
    """The content of `FullCache` in `bits` (8 or 4).

    Entry j of a slot is position j. A sequence is cut by continuing at an earlier position; tokens
    before it in a full group stay quantised.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], bits: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """shape: (slots, K, length, D).

        Raises:
            ValueError: D is odd, but two numbers share a byte.
        """
        slots, heads, length, dim = shape
        if bits == 4 and dim % 2:
            raise ValueError(
                f"cache: int4 puts two channels into a byte, but head_dim={dim} is odd"
            )
        self.bits = bits
        # One more for the group that starts after the last token, and one that new tokens touch.
        groups = (slots, heads, length // GROUP + 2)

        def zeros(*last: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(*groups, *last, dtype=dtype, device=device)

        self.parts = [
            Rounded(zeros(GROUP, dim * bits // 8, dtype=torch.uint8), zeros(*one), zeros(*one))
            for one in ((1, dim), (GROUP, 1))
        ]
        self.newest = [
            torch.zeros(slots, heads, GROUP, dim, dtype=dtype, device=device) for _ in self.parts
        ]  # tokens of the group in `held`, which is not full
        self.held = torch.zeros(slots, dtype=torch.int64, device=device)
        super().__init__([*(t for part in self.parts for t in part), *self.newest, self.held])

    def update(self, context: Context, *new: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Store keys and values (B, T, K, D) at `context.positions`, consecutive in a row.

        Returns (B, K, S, D) of all entries, dequantised, and their positions: (S,).
        """
        view, positions = context.view, context.positions
        rows = slice(view.slot, view.slot + new[0].shape[0])
        end = positions[:, -1] + 1
        end = end if view.ends is None else end.minimum(view.ends)
        first, open_group = positions[:, 0] // GROUP, end // GROUP
        touched = torch.arange(-(-positions.shape[1] // GROUP) + 1, device=positions.device)
        index = (torch.arange(len(first), device=first.device)[:, None], first[:, None] + touched)
        views = []
        for part, newest, fresh in zip(self.parts, self.newest, new, strict=True):
            part = Rounded(*(tensor[rows] for tensor in part))
            earlier = self._started(part, newest[rows], first, self.held[rows])
            fresh = in_cache_dtype(fresh, newest.dtype)
            groups = _laid(earlier, fresh, positions - first[:, None] * GROUP, len(touched))
            for kept, made in zip(part, rounded(groups, self.bits, _axis(part)), strict=True):
                kept[index[0], :, index[1]] = made.to(kept.dtype)
            newest[rows] = groups[index[0][:, 0], open_group - first].to(newest.dtype)
            views.append(self._view(part, newest[rows], open_group, view.length))
        self.held[rows] = open_group
        return tuple(views), torch.arange(view.length, device=positions.device)

    def open_groups(self, groups: list[int]) -> None:
        """Make `newest` of slot i the tokens of groups[i], to which one is added without `update`.

        It differs from `held` if a sequence was cut: that group was full, and is dequantised.
        """
        rows = slice(len(groups))
        if self.held[rows].tolist() == groups:
            return
        first = torch.tensor(groups, device=self.held.device)
        for part, newest in zip(self.parts, self.newest, strict=True):
            part = Rounded(*(tensor[rows] for tensor in part))
            newest[rows] = self._started(part, newest[rows], first, self.held[rows])
        self.held[rows] = first

    def close_groups(self, slots: Tensor) -> None:
        """Quantise `newest` of these slots (N,), which is full; the next group is empty."""
        group = self.held[slots]
        for part, newest in zip(self.parts, self.newest, strict=True):
            made = rounded(newest[slots], self.bits, _axis(part))
            for kept, new in zip(part, made, strict=True):
                kept[slots, :, group] = new
            newest[slots] = 0
        self.held[slots] = group + 1

    def _started(self, part: Rounded, newest: Tensor, first: Tensor, held: Tensor) -> Tensor:
        """(B, K, 32, D): the group of the first new token of each row."""
        rows = torch.arange(len(first), device=first.device)
        full = restored(Rounded(*(tensor[rows, :, first] for tensor in part)), self.bits)
        return newest.where((held == first)[:, None, None, None], full.to(newest.dtype))

    def _view(self, part: Rounded, newest: Tensor, open_group: Tensor, length: int) -> Tensor:
        """(B, K, length, D)."""
        groups = -(-length // GROUP)
        whole = restored(Rounded(*(tensor[:, :, :groups] for tensor in part)), self.bits)
        is_open = torch.arange(groups, device=open_group.device) == open_group[:, None]
        whole = newest[:, :, None].where(is_open[:, None, :, None, None], whole)
        return whole.flatten(2, 3)[:, :, :length]

    def copy(self, source: int, target: int, tokens: int) -> None:
        for tensor in self.tensors:
            tensor[target] = tensor[source]


def _axis(part: Rounded) -> int:
    """The axis whose numbers share a scale: tokens or channels."""
    return -2 if part.scale.shape[-2] == 1 else -1


def _laid(earlier: Tensor, fresh: Tensor, places: Tensor, groups: int) -> Tensor:
    """Tokens (B, T, K, D) after those of a group (B, K, 32, D) -> (B, G, K, 32, D)."""
    B, K, _, D = earlier.shape
    out = fresh.new_zeros(B, K, groups * GROUP, D)
    out[:, :, :GROUP] = earlier
    rows = torch.arange(B, device=fresh.device)[:, None]
    out[rows, :, places] = fresh
    return out.unflatten(2, (groups, GROUP)).transpose(1, 2)


def rounded(x: Tensor, bits: int, axis: int) -> Rounded:
    """Round to the nearest of 2^bits steps between minimum and maximum along an axis."""
    zero, greatest = x.amin(axis, keepdim=True), x.amax(axis, keepdim=True)
    # In fp32: a range may be beyond the numbers of fp16.
    scale = _not_below((greatest.float() - zero.float()) / (2**bits - 1), x.dtype)
    steps = (x.float() - zero.float()) / scale.float().clamp_min(torch.finfo(torch.float32).tiny)
    codes = steps.round().clamp(0, 2**bits - 1).to(torch.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    return Rounded(codes, scale, zero)


def _not_below(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Positive numbers of fp32, rounded up: a scale that is too small would cut off the greatest
    numbers of its group, and the smallest scales have few bits in fp16.
    """
    near = scale.to(dtype)
    if dtype == torch.float32:
        return near
    next_one = (near.view(torch.int16) + 1).view(dtype)
    return torch.where(near.float() < scale, next_one, near)


def restored(part: Rounded, bits: int) -> Tensor:
    """(..., 32, D) in the dtype of the scales."""
    codes = part.codes
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
    # One operation, which rounds once on a CPU; in fp16 a product alone may be infinite, and with a
    # scale that was rounded up, the largest number too.
    whole = torch.addcmul(part.zero, codes.to(part.scale.dtype), part.scale)
    return whole.clamp_(-FP16_MAX, FP16_MAX) if whole.dtype == torch.float16 else whole
