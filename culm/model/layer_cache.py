"""What one layer stores of earlier tokens: the base of every kind of cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FP16_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class CacheSpec:
    """The size of a cache: `slots` sequences of up to `length` tokens.

    bits: of keys and values, where a layer stores those of all tokens; the rest stays in `dtype`.
    rollback: tokens that a window stores beyond what it attends to, so that a sequence may be cut.
    """

    slots: int
    length: int
    dtype: torch.dtype
    device: torch.device
    bits: int | None = None
    rollback: int = 0

    @property
    def keys_dtype(self) -> torch.dtype:
        """Of keys and values: fp16 for bf16 on a CPU. It rounds to 11 bits instead of 8 and takes
        as much memory; `in_cache_dtype` says what becomes of numbers beyond its largest.
        """
        on_cpu = self.device.type == "cpu"
        return torch.float16 if on_cpu and self.dtype == torch.bfloat16 else self.dtype

    def zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """(slots, *shape)."""
        return torch.zeros((self.slots, *shape), dtype=dtype or self.dtype, device=self.device)


def in_cache_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in the dtype of a cache. In fp16, numbers beyond ±65504 become ±65504: an infinity would
    make NaN of all that attends to the slot, even where its weight is 0.
    """
    if dtype != torch.float16 or x.dtype == dtype:
        return x.to(dtype)
    return x.to(dtype).clamp_(-FP16_MAX, FP16_MAX)  # in bf16 the limit would be 65536


class LayerCache(ABC):
    """One layer's part of a cache. tensors: (slots, ...) each."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)

    @abstractmethod
    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy one slot over another, up to its first `tokens` tokens."""

    def clear(self, slot: int) -> None:
        """Make one slot empty. Masked entries have the weight 0, but 0 times NaN is NaN."""
        for tensor in self.tensors:
            tensor[slot] = 0

    @property
    def bytes(self) -> int:
        """Memory in use."""
        return sum(tensor.nbytes for tensor in self.tensors)
