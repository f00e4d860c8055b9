"""The one model: a decoder whose parts are chosen by its settings."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from culm.config import Config, listed
from culm.model.attend import Backend
from culm.model.attention import Attention
from culm.model.attention.gqa import GQA
from culm.model.cache import Cache, LayerCache
from culm.model.context import Context
from culm.model.init import initialize
from culm.model.linear import Linear
from culm.model.logprobs import Kernels, logprobs_of
from culm.model.mlp import FeedForward
from culm.model.mlp.swiglu import SwiGLU
from culm.model.norm import RMSNorm


class TransformerConfig(Config):
    """A decoder-only Transformer.

    vocabulary: rows of the embedding. context: tokens it is trained on at once.
    attention, mlp: one part for all layers, or a list that is repeated over them.
    tied: the output projection is the embedding. eps: of every norm.
    """

    vocabulary: PositiveInt
    width: PositiveInt
    layers: Annotated[PositiveInt, Field(le=10_000)]  # a broken file may ask for any number
    context: PositiveInt = 512
    attention: Annotated[tuple[Attention, ...], BeforeValidator(listed), Field(min_length=1)]
    mlp: Annotated[tuple[FeedForward, ...], BeforeValidator(listed), Field(min_length=1)] = (
        SwiGLU(),
    )
    eps: PositiveFloat = 1e-5
    tied: bool = True

    @model_validator(mode="after")
    def _fits(self) -> TransformerConfig:
        for index, attention in enumerate(self.attentions):
            try:
                attention.dim(self.width)
            except ValueError as error:
                raise ValueError(f"attention[{index % len(self.attention)}].{error}") from None
        return self

    @property
    def attentions(self) -> list[GQA]:
        """One per layer."""
        return [self.attention[i % len(self.attention)] for i in range(self.layers)]

    @property
    def mlps(self) -> list[SwiGLU]:
        """One per layer."""
        return [self.mlp[i % len(self.mlp)] for i in range(self.layers)]

    def build(self, seed: int = 0, device: torch.device | str = "cpu") -> Transformer:
        """An initialised model; on the meta device only its shapes exist."""
        with torch.device("meta"):
            model = Transformer(self)
        if torch.device(device).type != "meta":
            model.to_empty(device=device)
            model.tie()
            initialize(model, seed, self.layers)
        return model


class Block(nn.Module):
    """Pre-norm residual block.

    x ---+--- norm - attention --(+)---+--- norm - mlp --(+)---> x
         +------------------------+    +------------------+
    """

    def __init__(self, attention: GQA, mlp: SwiGLU, width: int, eps: float, rotation: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width, eps)
        self.attention = attention.build(width, eps, rotation)
        self.mlp_norm = RMSNorm(width, eps)
        self.mlp = mlp.build(width)

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), context, cache)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """tokens: (B, T) int64 -> logits (B, T, V) fp32.

    Activations are computed in `dtype`, whatever the precision of the weights.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.dtype = torch.float32
        self.kernels = Kernels()
        kinds = [(a.rope, a.dim(config.width)) for a in config.attentions]
        distinct = list(dict.fromkeys(kinds))
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.rotations = nn.ModuleList(rope.build(dim) for rope, dim in distinct)
        self.blocks = nn.ModuleList(
            Block(attention, mlp, config.width, config.eps, distinct.index(kind))
            for attention, mlp, kind in zip(config.attentions, config.mlps, kinds, strict=True)
        )
        self.norm = RMSNorm(config.width, config.eps)
        self.head: nn.Module = Linear(config.width, config.vocabulary)
        self.tie()

    def tie(self) -> None:
        """Make the output projection the embedding again, where the settings say so."""
        if self.config.tied:
            self.head.weight = self.embed.weight

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def set_backend(self, backend: Backend) -> None:
        """How every layer computes attention; see `culm.model.attend`."""
        for block in self.blocks:
            block.attention.backend = backend  # type: ignore[union-attr]

    def hidden(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        """The normalised last states (B, T, E) that the head reads."""
        context = context or Context.plain(tokens)
        context = context.with_rotations(tuple(r(context.positions) for r in self.rotations))
        caches = context.cache.layers if context.cache else [None] * len(self.blocks)
        x = self.embed(tokens).to(self.dtype)
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, context, cache)
        return self.norm(x)

    def forward(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        return self.head(self.hidden(tokens, context)).float()

    def logprobs(
        self,
        tokens: Tensor,
        targets: Tensor,
        context: Context | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Natural-log probability of each target, (B, T) fp32; 0 where the target is ignored."""
        hidden = self.hidden(tokens, context)
        return logprobs_of(hidden, self.head, targets, temperature, self.kernels)

    def cache(self, slots: int, length: int) -> Cache:
        """An empty cache for `slots` sequences of up to `length` tokens."""
        layers = [
            block.attention.cache(slots, length, self.dtype, self.device)  # type: ignore[union-attr,operator]
            for block in self.blocks
        ]
        return Cache(layers, slots, length)
