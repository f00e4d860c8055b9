"""Grouped-query attention (arXiv 2305.13245); kv_heads = heads is multi-head, 1 multi-query."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from culm.config import Config
from culm.model.attend import Backend, attend, attend_cached, attention_weights
from culm.model.cache import LayerCache, contiguous
from culm.model.context import Context
from culm.model.linear import Linear
from culm.model.norm import RMSNorm
from culm.model.rope import Rope, rotate


class GQA(Config):
    """heads: query heads; kv_heads: key and value heads, heads if not given.

    head_dim: width / heads if not given. qk_norm: RMSNorm over each head of q and k before the
    rotation (arXiv 2302.05442, as Qwen3). bias: of q, k and v (as Qwen2), not of the output.
    window: how far back a token sees, itself included.
    """

    kind: Literal["gqa"] = "gqa"
    heads: PositiveInt
    kv_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    qk_norm: bool = False
    bias: bool = False
    window: PositiveInt | None = None
    rope: Rope = Rope()

    @model_validator(mode="after")
    def _divides(self) -> GQA:
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: {self.kv_heads} does not divide heads={self.heads}")
        if self.head_dim is not None and self.head_dim % 2:
            raise ValueError(f"head_dim: {self.head_dim} is odd; rotary embedding pairs elements")
        return self

    def dim(self, width: int) -> int:
        """Elements of a head in a model of this width."""
        if self.head_dim is None and (width % self.heads or (width // self.heads) % 2):
            raise ValueError(f"heads: {self.heads} does not divide width={width} into even heads")
        return self.head_dim or width // self.heads

    def build(self, width: int, eps: float, rotation: int) -> GroupedQueryAttention:
        """rotation: index into `Context.rotations` of this layer's rotary embedding."""
        return GroupedQueryAttention(self, width, eps, rotation)


class GroupedQueryAttention(nn.Module):
    """x: (B, T, E) -> (B, T, E)."""

    tensor_parallel = {"q": "columns", "k": "columns", "v": "columns", "out": "rows"}  # noqa: RUF012
    folds = {"x": ("q", "k", "v"), "v": ("out",)}  # noqa: RUF012

    def __init__(self, config: GQA, width: int, eps: float, rotation: int) -> None:
        super().__init__()
        dim, kv_heads = config.dim(width), config.kv_heads or config.heads
        self.head_dim, self.kv_heads = dim, kv_heads
        self.window, self.rotation = config.window, rotation
        self.backend: Backend = "sdpa"
        self.q = Linear(width, config.heads * dim, config.bias)
        self.k = Linear(width, kv_heads * dim, config.bias)
        self.v = Linear(width, kv_heads * dim, config.bias)
        self.out = Linear(config.heads * dim, width, residual=True)
        self.q_norm = RMSNorm(dim, eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim, eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None) -> Tensor:
        q, k, v = self._project(x, context)
        if cache is None:
            heads = attend(q, k, v, context.documents, self.window, self.backend)
        else:
            k, v = cache.update(k, v, context)
            heads = attend_cached(q, k, v, context.positions, self.window, self.backend)
        return self.out(heads.flatten(-2))

    def weights(self, x: Tensor, context: Context) -> Tensor:
        """(B, H, T, T) attention weights of rows that are one document each, to be looked at."""
        q, k, _ = self._project(x, context)
        return attention_weights(q, k, self.window)

    def _project(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (B, T, H, D) and keys, and values (B, T, K, D)."""
        # Unflatten by head size, never by count: a tensor-parallel rank holds some of the heads.
        q, k, v = (part(x).unflatten(-1, (-1, self.head_dim)) for part in (self.q, self.k, self.v))
        rotation = context.rotations[self.rotation]
        return rotate(self.q_norm(q), rotation), rotate(self.k_norm(k), rotation), v

    def cache(
        self, slots: int, length: int, dtype: torch.dtype, device: torch.device
    ) -> LayerCache:
        """What this attention keeps of earlier tokens."""
        return contiguous(slots, length, self.kv_heads, self.head_dim, dtype, device)
