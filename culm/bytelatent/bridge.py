"""Bridges: how each kind of patch model gets from bytes to patches and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from culm.bytelatent.cache import Kept
from culm.bytelatent.patches import Patches
from culm.bytelatent.reading import Reading
from culm.model.context import Context
from culm.model.transformer import Transformer


class Ends(NamedTuple):
    """Where patches end. at: (B, T) bool.

    lengths: (B, T) bytes of the patch if it ends there, where the bridge reads them.
    probability: (B, T) fp32, of an end, where that is learned.
    """

    at: Tensor
    lengths: Tensor | None = None
    probability: Tensor | None = None


class Bridge(nn.Module, ABC):
    """bytes (B, T, E) -> patches (B, N, G) -> bytes (B, T, E).

    bytes_per_patch: expected, for a plan. width: elements of what a patch gives to its bytes.
    """

    bytes_per_patch: float
    width: int

    @property
    def kept(self) -> Kept:
        """What `Reading.keep` is given, besides bytes, counts of patches, and their results."""
        return {}

    @property
    def model(self) -> Transformer | None:
        """A model of its own that reads the bytes; the cache has its layers too."""
        return None

    def embedded(self, x: Tensor, reading: Reading) -> Tensor:
        """The input (B, T, E) of the encoder, from the embeddings of the bytes."""
        return x

    @abstractmethod
    def ends(self, states: Tensor, reading: Reading) -> Ends:
        """Where patches end, by bytes up to each alone. states: (B, T, E), of the encoder."""

    @abstractmethod
    def into(self, states: Tensor, patches: Patches, ends: Ends, reading: Reading) -> Tensor:
        """What the latent model reads (B, N, G)."""

    @abstractmethod
    def outward(self, latent: Tensor, patches: Patches, ends: Ends, reading: Reading) -> Tensor:
        """What each patch gives to its bytes (B, N, width), from the latent model (B, N, G)."""

    @abstractmethod
    def merged(
        self, states: Tensor, spread: Tensor, patches: Patches, ends: Ends, reading: Reading
    ) -> Tensor:
        """The input (B, T, E) of the decoder. spread: (B, T, width), `outward` of the patch that
        ended last.
        """

    def decoded(self, context: Context, patches: Patches) -> Context:
        """The context of the decoder."""
        return context


def within_patches(context: Context, patches: Patches, starts: Tensor) -> Context:
    """A context in which a byte sees the bytes after the same end alone. starts: (B, T), the
    position of the first of them.
    """
    if context.cache is not None:
        return replace(context, first=starts)
    return replace(context, documents=patches.numbers.to(torch.int32))
