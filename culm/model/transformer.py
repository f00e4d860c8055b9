"""The one model: a decoder whose parts are chosen by its settings."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle, islice
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from culm.config import Config, listed
from culm.model.attend import Backend
from culm.model.attention import Attention
from culm.model.attention.part import AttentionConfig
from culm.model.block import Block, Residual
from culm.model.cache import Cache
from culm.model.context import Context
from culm.model.init import GPT2, Initialization, Zero, initialize
from culm.model.linear import Linear
from culm.model.logprobs import Kernels, capped, logprobs_of
from culm.model.mlp import FeedForward
from culm.model.mlp.gated import SwiGLU
from culm.model.mlp.part import FeedForwardConfig
from culm.model.norm import Normalization, RMSNormConfig
from culm.model.scaling import CompleteP, Scaling


class TransformerConfig(Config):
    """A decoder-only Transformer.

    vocabulary: rows of the embedding. context: tokens it is trained on at once.
    attention, mlp: one part for all layers, or a list that is repeated over them.
    norm: its kind, everywhere. residual: how the parts of a block meet.
    learned_positions: a learned row per position is added to the embedding (as GPT-2).
    embedding_scale: what the embedding is multiplied by (Gemma). head_scale: the same for what the
    head reads (muP). softcap: bound of the logits (Gemma 2).
    tied: the output projection is the embedding. init: how weights begin (`culm.model.init`).
    scaling: the rule by which rates and initial weights follow from those of a smaller model
        (`culm.model.scaling`).
    """

    vocabulary: PositiveInt
    width: PositiveInt
    layers: Annotated[PositiveInt, Field(le=10_000)]  # a broken file may ask for any number
    context: PositiveInt = 512
    attention: Annotated[tuple[Attention, ...], BeforeValidator(listed), Field(min_length=1)]
    mlp: Annotated[tuple[FeedForward, ...], BeforeValidator(listed), Field(min_length=1)] = (
        SwiGLU(),
    )
    norm: Normalization = RMSNormConfig()
    residual: Residual = Residual()
    learned_positions: bool = False
    embedding_scale: PositiveFloat = 1.0
    head_scale: PositiveFloat = 1.0
    softcap: PositiveFloat | None = None
    tied: bool = True
    init: Initialization = GPT2()
    scaling: Scaling | None = None

    @model_validator(mode="after")
    def _fits(self) -> TransformerConfig:
        if self.tied and isinstance(self.init, Zero):
            raise ValueError(
                "init: zero begins the head at zero, and here it is the embedding; "
                "set tied to false"
            )
        if isinstance(self.scaling, CompleteP) and isinstance(self.init, GPT2):
            raise ValueError(
                "init: gpt2 shrinks weights with the depth, as completep does with "
                "branches; take init=llama or zero"
            )
        for part in ("attention", "mlp"):
            for index, config in enumerate(getattr(self, part)):
                try:
                    config.resolved(self.width)
                except ValueError as error:
                    raise ValueError(f"{part}[{index}].{error}") from None
        return self

    @property
    def attentions(self) -> list[AttentionConfig]:
        """One per layer."""
        return list(islice(cycle(self.attention), self.layers))

    @property
    def mlps(self) -> list[FeedForwardConfig]:
        """One per layer."""
        return list(islice(cycle(self.mlp), self.layers))

    def resolved(self) -> TransformerConfig:
        """The same model with every default filled in and each list as short as it can be."""
        same = self.scaled()
        attention = tuple(part.resolved(self.width) for part in same.attention)
        mlp = tuple(part.resolved(self.width) for part in same.mlp)
        return same.model_copy(update={"attention": attention, "mlp": mlp}).shortened()

    def scaled(self) -> TransformerConfig:
        """The model that is computed: what its scaling rule multiplies in its own settings."""
        rule = self.scaling
        if rule is None:
            return self
        attention = [part.rescaled(self.width, rule.base_head_dim) for part in self.attention]
        branches = self.residual.scale / rule.depths(self.layers)
        update = {
            "attention": tuple(attention),
            "residual": self.residual.model_copy(update={"scale": branches}),
            "head_scale": self.head_scale / rule.widths(self.width),
            "scaling": None,
        }
        return self.model_copy(update=update)

    def shortened(self) -> TransformerConfig:
        """The same model with each list as short as it can be."""
        parts = {"attention": _period(self.attentions), "mlp": _period(self.mlps)}
        return self.model_copy(update=parts)

    def build(self, seed: int = 0, device: torch.device | str = "cpu") -> Transformer:
        """An initialised model; on the meta device only its shapes exist."""
        with torch.device("meta"):
            model = Transformer(self)
        if torch.device(device).type != "meta":
            model.to_empty(device=device)
            model.tie()
            initialize(model, seed, self.layers, self.init)
            if self.scaling is not None:
                self.scaling.shrink(model, self.width)
        return model


def _period(parts: list[Any]) -> tuple[Any, ...]:
    """The shortest beginning of a list that gives it when it is repeated."""
    for length in range(1, len(parts) + 1):
        if all(part == parts[index % length] for index, part in enumerate(parts)):
            return tuple(parts[:length])
    raise AssertionError("a list repeats itself")


class Transformer(nn.Module):
    """tokens: (B, T) int64 -> logits (B, T, V) fp32.

    Activations are computed in `dtype`, whatever the precision of the weights.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.dtype = torch.float32
        self.kernels = Kernels()
        config = config.scaled()
        self.head_scale = config.head_scale
        kinds = [attention.rotary(config.width) for attention in config.attentions]
        distinct = [kind for kind in dict.fromkeys(kinds) if kind is not None]
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.positions = (
            nn.Embedding(config.context, config.width) if config.learned_positions else None
        )
        self.rotations = nn.ModuleList(rope.build(dim) for rope, dim in distinct)
        self.blocks = nn.ModuleList(
            Block(
                attention, mlp, config.width, config.norm, config.residual,
                distinct.index(kind) if kind else -1,
            )
            for attention, mlp, kind in zip(config.attentions, config.mlps, kinds, strict=True)
        )  # fmt: skip
        self.norm = config.norm.build(config.width)
        self.head: nn.Module = Linear(config.width, config.vocabulary)
        self.tie()

    def tie(self) -> None:
        """Make the output projection the embedding again, where the settings say so."""
        if self.config.tied:
            self.head.weight = self.embed.weight

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def set_backend(self, backend: Backend) -> int:
        """Compute attention by a backend (`culm.model.attend`); gives how many layers cannot.

        Those compute in blocks, which serves every kind.
        """
        others = 0
        for block in self.blocks:
            served = block.attention.serves(backend)  # type: ignore[union-attr,operator]
            block.attention.backend = backend if served else "blocks"  # type: ignore[union-attr]
            others += not served
        return others

    def hidden(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        """The normalised last states (B, T, E) that the head reads."""
        context = context or Context.plain(tokens)
        caches = context.cache.layers if context.cache else [None] * len(self.blocks)
        x = _scaled(self.embed(tokens).to(self.dtype), self.config.embedding_scale)
        if self.positions is not None:
            x = x + self.positions(context.positions).to(self.dtype)
        rotations = tuple(rotation(context.positions) for rotation in self.rotations)
        context = replace(context, rotations=rotations, embedded=x)
        for block, cache in zip(self.blocks, caches, strict=True):
            x, values, routing = block(x, context, cache)
            if context.values is None and values is not None:
                context = replace(context, values=values)
            if context.routings is not None and routing is not None:
                context.routings.append(routing)
        return _scaled(self.norm(x), self.head_scale)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (..., E), as `hidden` gives it -> (..., V) fp32."""
        return capped(self.head(hidden).float(), self.config.softcap)

    def forward(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        return self.logits(self.hidden(tokens, context))

    def logprobs(
        self,
        tokens: Tensor,
        targets: Tensor,
        context: Context | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Natural-log probability of each target, (B, T) fp32; 0 where the target is ignored."""
        hidden, cap = self.hidden(tokens, context), self.config.softcap
        return logprobs_of(hidden, self.head, targets, temperature, self.kernels, cap)

    def cache(self, slots: int, length: int) -> Cache:
        """An empty cache for `slots` sequences of up to `length` tokens."""
        layers = [
            block.attention.cache(slots, length, self.dtype, self.device)  # type: ignore[union-attr,operator]
            for block in self.blocks
        ]
        return Cache(layers, slots, length)


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1.0 else x * factor
