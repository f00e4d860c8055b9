"""What every attention is to its block: it mixes tokens, and says what it keeps of earlier ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn

from culm.config import Config
from culm.model.attend import Backend
from culm.model.context import LayerContext
from culm.model.layer_cache import CacheSpec, LayerCache
from culm.model.norm import NormConfig
from culm.model.rope import Rope


class AttentionConfig(Config, ABC):
    """Settings of an attention."""

    kind: str

    @abstractmethod
    def resolved(self, width: int) -> Self:
        """The same with every number that depends on the model's width filled in.

        Raises:
            ValueError: `setting: why` it does not fit this width.
        """

    def rescaled(self, width: int, base: int) -> Self:
        """The same with scores that fall with 1/head_dim instead of its root (muP, arXiv
        2203.03466), and are what they were for heads of the size `base`; nothing without scores.
        """
        return self

    def rotary(self, width: int) -> tuple[Rope, int] | None:
        """The rotary embedding of its heads and how many of their elements it turns, if it has one.

        Layers with the same share its cosines and sines.
        """
        return None

    @abstractmethod
    def build(self, width: int, norm: NormConfig, rotation: int) -> AttentionModule:
        """norm: of the model; rotation: index of what `rotary` gave in `LayerContext.rotations`."""


class AttentionModule(nn.Module, ABC):
    """x: (B, T, E) -> (B, T, E)."""

    backend: Backend = "blocks"  # until one is chosen: it serves every kind

    @abstractmethod
    def forward(self, x: Tensor, context: LayerContext, cache: LayerCache | None) -> Tensor:
        """With a cache the rows continue what it keeps."""

    @abstractmethod
    def cache(self, spec: CacheSpec) -> LayerCache:
        """An empty cache of what this attention keeps."""

    def weights(self, x: Tensor, context: LayerContext) -> Tensor | None:
        """Attention weights (B, H, T, T) fp32, to inspect; None if there is no softmax over tokens.

        x: as in forward; each row is one document.
        """
        return None

    def serves(self, backend: Backend, device: torch.device) -> bool:
        """Whether this attention can be computed by a backend on a device."""
        return True
