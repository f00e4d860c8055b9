"""The interface of attention: it mixes tokens, and stores what it needs of earlier ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from culm.config import Config
from culm.model.context import LayerContext
from culm.model.layer_cache import CacheSpec, LayerCache
from culm.model.linear import Split
from culm.model.norm import NormConfig
from culm.model.rope import Rope
from culm.model.score_rule import Backend


class AttentionConfig(Config, ABC):
    """Settings of an attention."""

    kind: str

    @abstractmethod
    def resolved(self, width: int) -> Self:
        """The same with every default that depends on the model's width filled in.

        Raises:
            ValueError: it does not fit this width; the message is `setting: why`.
        """

    def rescaled(self, width: int, base: int) -> Self:
        """The same with scores scaled by 1/head_dim instead of its root (muP, arXiv 2203.03466),
        unchanged for heads of the size `base`. Attention without scores stays as it is.
        """
        return self

    def rotary(self, width: int) -> tuple[Rope, int] | None:
        """Its rotary embedding, if it has one, and the number of elements that this rotates.

        Layers with the same one share its cosines and sines.
        """
        return None

    @abstractmethod
    def build(self, width: int, norm: NormConfig, rotation: int) -> AttentionModule:
        """norm: of the model; rotation: index of its `rotary` in `LayerContext.rotations`."""


class GroupedHeads(AttentionConfig):
    """Query heads that share key and value heads in groups, of vectors that may be rotated."""

    heads: PositiveInt
    kv_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    scale: PositiveFloat | None = None
    rope: Rope | None = Rope()

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: {self.kv_heads} does not divide heads={self.heads}")
        if self.rope is not None and self.head_dim is not None:
            self.rope.rotary_dim(self.head_dim, "head_dim")
        return self

    def dim(self, width: int) -> int:
        """Elements of a head in a model of this width."""
        if self.head_dim is None and width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width={width}")
        return self.head_dim or width // self.heads

    def resolved(self, width: int) -> Self:
        dim = self.dim(width)
        if self.rope is not None:
            self.rope.rotary_dim(dim, "heads")
        return self.model_copy(
            update={"head_dim": dim, "kv_heads": self.kv_heads or self.heads,
                    "scale": self.scale or dim**-0.5}
        )  # fmt: skip

    def rescaled(self, width: int, base: int) -> Self:
        dim = self.dim(width)
        scale = (self.scale or dim**-0.5) * (base / dim) ** 0.5
        return self.model_copy(update={"scale": scale})

    def rotary(self, width: int) -> tuple[Rope, int] | None:
        return None if self.rope is None else (self.rope, self.rope.rotary_dim(self.dim(width)))


class AttentionModule(nn.Module, ABC):
    """x: (B, T, E) -> (B, T, E)."""

    backend: Backend = "blocks"  # until one is chosen: it supports every kind
    # Whether it works on rows of which each rank has a part, by `Context.sequence`.
    context_parallel: ClassVar[bool] = True

    @property
    def tensor_parallel(self) -> Mapping[str, Split]:
        """How its layers and parameters are divided over tensor-parallel ranks, by attribute; none:
        every rank computes all of them.
        """
        return {}

    @property
    def heads_divided(self) -> tuple[int, ...]:
        """Counts of heads that tensor and context parallelism divide."""
        return ()

    @abstractmethod
    def forward(self, x: Tensor, context: LayerContext, cache: LayerCache | None) -> Tensor:
        """With a cache the rows continue what it stores."""

    @abstractmethod
    def cache(self, spec: CacheSpec) -> LayerCache:
        """An empty cache for this attention."""

    def weights(self, x: Tensor, context: LayerContext) -> Tensor | None:
        """Attention weights (B, H, T, T) fp32, for inspection; one document per row.

        None: it has no softmax over tokens.
        """
        return None

    def serves(self, backend: Backend, device: torch.device) -> bool:
        """Whether a backend supports this attention on a device."""
        return True
