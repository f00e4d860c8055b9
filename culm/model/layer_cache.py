"""What one layer stores of earlier tokens: the base of every kind of cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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

    def zeros(self, *shape: int) -> Tensor:
        """(slots, *shape)."""
        return torch.zeros((self.slots, *shape), dtype=self.dtype, device=self.device)


class LayerCache(ABC):
    """One layer's part of a cache. tensors: (slots, ...) each."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)

    @abstractmethod
    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy one slot over another, up to its first `tokens` tokens."""

    @property
    def bytes(self) -> int:
        """Memory in use."""
        return sum(tensor.nbytes for tensor in self.tensors)
