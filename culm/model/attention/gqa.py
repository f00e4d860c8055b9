"""Grouped-query attention (arXiv 2305.13245); kv_heads = heads is multi-head, 1 multi-query."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Self

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from culm.dtensor import local_shard
from culm.model.attend import attend, attention_weights, serves
from culm.model.attend_cached import attend_cached
from culm.model.attention.part import AttentionModule, GroupedHeads
from culm.model.cache import FullCache, RollingCache
from culm.model.context import LayerContext
from culm.model.init import CustomInit
from culm.model.layer_cache import CacheSpec, LayerCache
from culm.model.linear import Linear, Split
from culm.model.norm import NormConfig
from culm.model.quantized_cache import QuantizedCache
from culm.model.rope import rotate
from culm.model.score_rule import Backend, ScoreRule


class GroupedQuery(GroupedHeads):
    """The settings of `GQA`, for a class with a kind of its own.

    heads: query heads; kv_heads: key and value heads, heads if not given.

    head_dim: width / heads if not given.
    qk_norm: normalise q and k before the rotation, each head (arXiv 2302.05442, as Qwen3) or all
        heads together (as OLMo 2).
    bias: of q, k and v (as Qwen2); out_bias: of the output (as GPT-2).
    window: how many tokens back a token sees, itself included; sink_tokens: tokens at the start of
        a document that it sees in addition (arXiv 2309.17453; positions are those of the text,
        where the paper counts inside the cache, so that training and inference agree).
    sink_logits: a learned score per head that takes part in every softmax (GPT-OSS).
    softcap: bound of the scores (Gemma 2). scale: of the scores; head_dim^-0.5 if not given.
    rope: rotary embedding, or null for none. alibi: scores fall with distance instead
        (arXiv 2108.12409).
    value_residual: values are mixed with those of the first layer by learned weights
        (arXiv 2410.17897).
    """

    qk_norm: Literal["head", "width"] | None = None
    bias: bool = False
    out_bias: bool = False
    window: PositiveInt | None = None
    sink_tokens: NonNegativeInt = 0
    sink_logits: bool = False
    softcap: PositiveFloat | None = None
    alibi: bool = False
    value_residual: bool = False

    @model_validator(mode="after")
    def _scores_fit(self) -> Self:
        if self.alibi and self.rope is not None:
            raise ValueError("alibi: it replaces rope; set rope to null")
        if self.sink_tokens and self.window is None:
            raise ValueError(
                "sink_tokens: without a window every token is visible anyway; set window"
            )
        return self

    def build(self, width: int, norm: NormConfig, rotation: int) -> GroupedQueryAttention:
        return GroupedQueryAttention(self, width, norm, rotation)


class GQA(GroupedQuery):
    """Grouped-query attention (arXiv 2305.13245)."""

    kind: Literal["gqa"] = "gqa"


class GroupedQueryAttention(AttentionModule, CustomInit):
    """x: (B, T, E) -> (B, T, E)."""

    scale_folds = {"x": ("q", "k", "v"), "v": ("out",)}  # noqa: RUF012

    def __init__(self, config: GroupedQuery, width: int, norm: NormConfig, rotation: int) -> None:
        super().__init__()
        dim, heads, kv_heads = config.dim(width), config.heads, config.kv_heads or config.heads
        self.config, self.head_dim, self.kv_heads = config, dim, kv_heads
        self.rotation = None if config.rope is None else rotation
        self.q = Linear(width, heads * dim, config.bias)
        self.k = Linear(width, kv_heads * dim, config.bias)
        self.v = Linear(width, kv_heads * dim, config.bias)
        self.out = Linear(heads * dim, width, config.out_bias, residual=True)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm is not None:
            full = config.qk_norm == "width"
            self.q_norm = norm.build(heads * dim if full else dim)
            self.k_norm = norm.build(kv_heads * dim if full else dim)
        self.sinks = nn.Parameter(torch.empty(heads)) if config.sink_logits else None
        self.shares = nn.Parameter(torch.empty(2)) if config.value_residual else None

    def init_weights(self, generator: Callable[[str], torch.Generator], std: float) -> None:
        if self.sinks is not None:
            self.sinks.zero_()
        if self.shares is not None:
            self.shares.fill_(0.5)

    @property
    def tensor_parallel(self) -> Mapping[str, Split]:
        if self.config.alibi or self.config.qk_norm == "width":  # these know of all heads
            return {}
        sinks: dict[str, Split] = {} if self.sinks is None else {"sinks": "columns"}
        return {"q": "columns", "k": "columns", "v": "columns", "out": "rows", **sinks}

    @property
    def heads_divided(self) -> tuple[int, ...]:
        return (self.config.heads, self.kv_heads)

    def rule(self, device: torch.device | None = None) -> ScoreRule:
        """How its scores are computed."""
        c = self.config
        slopes = slopes_of(c.heads).to(device) if c.alibi else None
        sinks = None if self.sinks is None else local_shard(self.sinks)
        return ScoreRule(c.scale, c.window, c.sink_tokens, c.softcap, slopes, sinks)

    def serves(self, backend: Backend, device: torch.device) -> bool:
        return serves(backend, self.rule(), device)

    def forward(self, x: Tensor, context: LayerContext, cache: LayerCache | None) -> Tensor:
        q, k, v = self._project(x, context)
        rule = self.rule(x.device)
        if cache is None:
            heads = attend(q, k, v, context, rule, self.backend)
        else:
            assert isinstance(cache, FullCache | RollingCache | QuantizedCache)
            (k, v), at = cache.update(context, k, v)
            now, first = context.positions, context.first
            heads = attend_cached(q, k, v, at, now, rule, self.backend, first)
        return self.out(heads.flatten(-2))

    def weights(self, x: Tensor, context: LayerContext) -> Tensor:
        """Attention weights (B, H, T, T), for inspection; one document per row."""
        q, k, _ = self._project(x, context)
        return attention_weights(q, k, self.rule(x.device), context.causal)

    def _project(self, x: Tensor, context: LayerContext) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (B, T, H, D) and keys, and values (B, T, K, D)."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.config.qk_norm == "width":
            q, k = self.q_norm(q), self.k_norm(k)
        # Unflatten by head size, never by count: a tensor-parallel rank holds some of the heads.
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in (q, k, v))
        if self.config.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotation is not None:
            rotation = context.rotations[self.rotation]
            q, k = rotate(q, rotation), rotate(k, rotation)
        if self.shares is not None:
            context.outputs.values = v
            shares, first = self.shares.to(v.dtype), v if context.values is None else context.values
            v = shares[0] * v + shares[1] * first
        return q, k, v

    def cache(self, spec: CacheSpec) -> LayerCache:
        window, sinks = self.config.window, self.config.sink_tokens
        entries = (
            spec.length if window is None else min(spec.length, sinks + window + spec.rollback)
        )
        shape, dtype = (self.kv_heads, entries, self.head_dim), spec.keys_dtype
        if spec.bits is not None and entries == spec.length:
            return QuantizedCache((spec.slots, *shape), spec.bits, dtype, spec.device)
        tensors = [spec.zeros(*shape, dtype=dtype) for _ in range(2)]
        return FullCache(tensors) if entries == spec.length else RollingCache(tensors, sinks)


def slopes_of(heads: int) -> Tensor:
    """ALiBi slopes (H,): 2^(-8/n), 2^(-16/n), ... for a power of two. Other counts take the next
    lower power, followed by every second slope of the next higher one.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    more = [2.0 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * (heads - power), 2)]
    return torch.tensor(slopes + more)
