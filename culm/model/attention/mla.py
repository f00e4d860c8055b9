"""Multi-head latent attention (arXiv 2405.04434): keys and values from one small latent.

The cache stores the latent of each token (rank) and one rotated key for all heads (rope_dim). While
decoding, the projection from latents to keys is applied to the query instead, and the one to values
to the result: scores are computed with the latents themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from culm.model.attend import attend, attention_weights, serves
from culm.model.attend_cached import attend_cached
from culm.model.attention.part import AttentionConfig, AttentionModule
from culm.model.cache import FullCache
from culm.model.context import LayerContext
from culm.model.layer_cache import CacheSpec, LayerCache
from culm.model.linear import Linear, Split
from culm.model.norm import NormConfig
from culm.model.rope import Rope, rotate
from culm.model.score_rule import Backend, ScoreRule


class MLA(AttentionConfig):
    """heads: query heads. rank: of the latent of keys and values; query_rank: of queries, if any.

    head_dim: size of the unrotated part of keys. rope_dim: size of their rotated part.
    value_dim: size of values. rope: rotary embedding.
    scale: of the scores; (head_dim + rope_dim)^-0.5 if not given.
    bias: of the projections to the latents and of the output.
    """

    kind: Literal["mla"] = "mla"
    heads: PositiveInt
    rank: PositiveInt = 512
    query_rank: PositiveInt | None = None
    head_dim: PositiveInt = 128
    rope_dim: PositiveInt = 64
    value_dim: PositiveInt = 128
    bias: bool = False
    scale: PositiveFloat | None = None
    rope: Rope = Rope()

    def resolved(self, width: int) -> MLA:
        self.rope.rotary_dim(self.rope_dim, "rope_dim")
        return self.model_copy(update={"scale": self._scale()})

    def rescaled(self, width: int, base: int) -> MLA:
        scale = self._scale() * (base / (self.head_dim + self.rope_dim)) ** 0.5
        return self.model_copy(update={"scale": scale})

    def _scale(self) -> float:
        return self.scale or (self.head_dim + self.rope_dim) ** -0.5

    def rotary(self, width: int) -> tuple[Rope, int]:
        return self.rope, self.rope.rotary_dim(self.rope_dim)

    def build(self, width: int, norm: NormConfig, rotation: int) -> LatentAttention:
        return LatentAttention(self, self._scale(), width, norm, rotation)


class LatentAttention(AttentionModule):
    """x: (B, T, E) -> (B, T, E)."""

    def __init__(
        self, config: MLA, scale: float, width: int, norm: NormConfig, rotation: int
    ) -> None:
        super().__init__()
        c, heads = config, config.heads
        self.config, self.rule, self.rotation = config, ScoreRule(scale), rotation
        queries = heads * (c.head_dim + c.rope_dim)
        self.query_latent = self.query_norm = None
        if c.query_rank is not None:
            self.query_latent = Linear(width, c.query_rank, c.bias)
            self.query_norm = norm.build(c.query_rank)
        self.q = Linear(c.query_rank or width, queries)
        self.latent = Linear(width, c.rank, c.bias)
        self.rope_key = Linear(width, c.rope_dim, c.bias)
        self.latent_norm = norm.build(c.rank)
        self.k = Linear(c.rank, heads * c.head_dim)
        self.v = Linear(c.rank, heads * c.value_dim)
        self.out = Linear(heads * c.value_dim, width, c.bias, residual=True)

    @property
    def tensor_parallel(self) -> Mapping[str, Split]:
        return {"q": "columns", "k": "columns", "v": "columns", "out": "rows"}

    @property
    def heads_divided(self) -> tuple[int, ...]:
        return (self.config.heads,)

    def serves(self, backend: Backend, device: torch.device) -> bool:
        c = self.config  # flash kernels of a GPU need values of the size of keys
        alike = c.head_dim + c.rope_dim == c.value_dim
        return serves(backend, self.rule, device) and (alike or backend not in ("flash2", "flash3"))

    def forward(self, x: Tensor, context: LayerContext, cache: LayerCache | None) -> Tensor:
        q, rotated = self._queries(x, context)
        latent, key = self._latents(x, context)
        if cache is None:
            heads = self._naive(q, rotated, latent, key, context)
        else:
            heads = self._absorbed(q, rotated, latent, key, context, cache)
        return self.out(heads.flatten(-2))

    def weights(self, x: Tensor, context: LayerContext) -> Tensor:
        """Attention weights (B, H, T, T), for inspection; one document per row."""
        q, rotated = self._queries(x, context)
        keys = self._keys(*self._latents(x, context))
        queries = torch.cat((q, rotated), -1)
        return attention_weights(queries, keys, self.rule, context.causal)

    def _queries(self, x: Tensor, context: LayerContext) -> tuple[Tensor, Tensor]:
        """Unrotated (B, T, H, D) and rotated part (B, T, H, R)."""
        if self.query_latent is not None and self.query_norm is not None:
            x = self.query_norm(self.query_latent(x))
        sizes = (self.config.head_dim, self.config.rope_dim)
        q, rotated = self.q(x).unflatten(-1, (-1, sum(sizes))).split(sizes, -1)
        return q, rotate(rotated, context.rotations[self.rotation])

    def _latents(self, x: Tensor, context: LayerContext) -> tuple[Tensor, Tensor]:
        """Normalised latent (B, T, rank) and rotated key (B, T, 1, R)."""
        key = rotate(self.rope_key(x)[:, :, None], context.rotations[self.rotation])
        return self.latent_norm(self.latent(x)), key

    def _keys(self, latent: Tensor, key: Tensor) -> Tensor:
        """(B, T, H, D + R)."""
        k = self.k(latent).unflatten(-1, (-1, self.config.head_dim))
        return torch.cat((k, key.expand(-1, -1, k.shape[2], -1)), -1)

    def _naive(
        self, q: Tensor, rotated: Tensor, latent: Tensor, key: Tensor, context: LayerContext
    ) -> Tensor:
        v = self.v(latent).unflatten(-1, (-1, self.config.value_dim))
        queries, keys = torch.cat((q, rotated), -1), self._keys(latent, key)
        return attend(queries, keys, v, context, self.rule, self.backend)

    def _absorbed(
        self,
        q: Tensor,
        rotated: Tensor,
        latent: Tensor,
        key: Tensor,
        context: LayerContext,
        cache: LayerCache,
    ) -> Tensor:
        assert isinstance(cache, FullCache)
        stored = torch.cat((latent[:, :, None], key), -1)
        (latents,), at = cache.update(context, stored)
        q = torch.einsum("bthd,hdr->bthr", q, self._per_head(self.k, q.dtype))
        queries, values = torch.cat((q, rotated), -1), latents[..., : self.config.rank]
        found = attend_cached(
            queries, latents, values, at, context.positions, self.rule, self.backend
        )
        return torch.einsum("bthr,hdr->bthd", found, self._per_head(self.v, found.dtype))

    def _per_head(self, layer: Linear, dtype: torch.dtype) -> Tensor:
        """(H, D, rank): the weights of a projection from the latent."""
        return layer.matrix().to(dtype).unflatten(0, (self.config.heads, -1))

    def cache(self, spec: CacheSpec) -> LayerCache:
        size = self.config.rank + self.config.rope_dim
        return FullCache([spec.zeros(1, spec.length, size)])
