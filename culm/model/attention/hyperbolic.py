"""Attention in hyperbolic space (HELM, arXiv 2505.24722): scores are distances, not dot products.

    weights = softmax over keys of -scale |q - k|_L^2,   |q - k|_L^2 = -2/c - 2 <q, k>_L
    output  = the centroid of the values: their weighted sum, scaled back onto the hyperboloid

Terms that are equal for all keys cancel in the softmax: 2/c, and the origin o, so <q, k - o>_L
replaces <q, k>_L. It is a dot product once the sign of the query's time is flipped. Therefore the
kernels of `culm.model.attend` compute this attention, with one more element in each head.
As c goes to 0, the scores become Euclidean distances and the centroid becomes the mean. Both are
computed from the offsets k - o and v - o, because the times of the points go to infinity.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from culm.hyperbolic.lorentz import centroid_of, lift, offsets
from culm.model.attend import attend, attention_weights, serves
from culm.model.attend_cached import attend_cached
from culm.model.attention.part import AttentionModule, GroupedHeads
from culm.model.cache import FullCache
from culm.model.context import LayerContext
from culm.model.layer_cache import CacheSpec, LayerCache
from culm.model.lorentz import LorentzLinear, PartCurvature, time_in_fp32
from culm.model.norm import NormConfig
from culm.model.quantized_cache import QuantizedCache
from culm.model.rope import rotate
from culm.model.score_rule import Backend, ScoreRule


class Hyperbolic(GroupedHeads):
    """heads: query heads; kv_heads: key and value heads, heads if not given.

    head_dim: of the space part; width / heads if not given.

    curvature: c, where the curvature of the space is -c. learned_curvature: each layer trains its
    own, from there. scale: of squared distances; head_dim^-0.5 if not given.
    qk_norm: normalise the space parts of q and k in each head, before the rotation.
    rope: rotary embedding of the space parts, which moves points along the hyperboloid, or null.
    """

    kind: Literal["hyperbolic"] = "hyperbolic"
    curvature: PositiveFloat = 1.0
    learned_curvature: bool = False
    qk_norm: bool = False

    def build(self, width: int, norm: NormConfig, rotation: int) -> HyperbolicAttention:
        return HyperbolicAttention(self, width, norm, rotation)


class HyperbolicAttention(AttentionModule):
    """s: (B, T, E) -> (B, T, E), space parts of points."""

    def __init__(self, config: Hyperbolic, width: int, norm: NormConfig, rotation: int) -> None:
        super().__init__()
        dim, heads, kv_heads = config.dim(width), config.heads, config.kv_heads or config.heads
        self.config, self.head_dim, self.kv_heads = config, dim, kv_heads
        self.rotation = None if config.rope is None else rotation
        self.curvature = PartCurvature(config.curvature, config.learned_curvature)
        self.q = LorentzLinear(width, heads * dim)
        self.k = LorentzLinear(width, kv_heads * dim)
        self.v = LorentzLinear(width, kv_heads * dim)
        self.out = LorentzLinear(heads * dim, width, residual=True)
        self.q_norm: nn.Module = norm.build(dim) if config.qk_norm else nn.Identity()
        self.k_norm: nn.Module = norm.build(dim) if config.qk_norm else nn.Identity()
        self.rule = ScoreRule(2 * (config.scale or dim**-0.5))

    def serves(self, backend: Backend, device: torch.device) -> bool:
        # Flash kernels want sizes of heads that are multiples of 8, and 16 bits.
        return backend in ("blocks", "sdpa") and serves(backend, self.rule, device)

    def forward(self, x: Tensor, context: LayerContext, cache: LayerCache | None) -> Tensor:
        (q, k, v), c = self._project(x, context), self.curvature()
        if cache is None:
            heads = attend(
                _flipped(lift(q.float(), c)), offsets(k.float(), c), offsets(v.float(), c), context,
                self.rule, self.backend,
            )  # fmt: skip
        else:
            assert isinstance(cache, FullCache | QuantizedCache)
            (k, v), at = cache.update(context, k, v)
            heads = attend_cached(
                _flipped(lift(q.float(), c)), offsets(k.float(), c), offsets(v.float(), c), at,
                context.positions, self.rule, self.backend,
            )  # fmt: skip
        found = centroid_of(heads, c)[..., 1:].flatten(-2).to(x.dtype)
        return self.out(found, time_in_fp32(found, c))

    def weights(self, x: Tensor, context: LayerContext) -> Tensor:
        """Attention weights (B, H, T, T), for inspection; one document per row."""
        (q, k, _), c = self._project(x, context), self.curvature()
        return attention_weights(_flipped(lift(q.float(), c)), offsets(k.float(), c), self.rule)

    def _project(self, x: Tensor, context: LayerContext) -> tuple[Tensor, Tensor, Tensor]:
        """Space parts of rotated queries (B, T, H, D) and keys, and values (B, T, K, D)."""
        time = time_in_fp32(x, self.curvature())
        q, k, v = (
            part(x, time).unflatten(-1, (-1, self.head_dim)) for part in (self.q, self.k, self.v)
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotation is not None:
            rotation = context.rotations[self.rotation]
            q, k = rotate(q, rotation), rotate(k, rotation)
        return q, k, v

    def cache(self, spec: CacheSpec) -> LayerCache:
        shape = (self.kv_heads, spec.length, self.head_dim)
        if spec.bits is not None:
            return QuantizedCache((spec.slots, *shape), spec.bits, spec.dtype, spec.device)
        return FullCache([spec.zeros(*shape), spec.zeros(*shape)])


def _flipped(points: Tensor) -> Tensor:
    """Flip the sign of the time: the dot product with it is the Lorentz inner product."""
    return torch.cat((-points[..., :1], points[..., 1:]), -1)
