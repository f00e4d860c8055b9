"""The one model: a decoder whose parts are chosen by its settings."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle, islice
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from culm.batch import IGNORED
from culm.config import Config, SettingError, listed
from culm.log import say
from culm.model.attend import Backend
from culm.model.attention import Attention
from culm.model.attention.gqa import GQA
from culm.model.attention.part import AttentionConfig
from culm.model.block import Block, Residual
from culm.model.cache import Cache, Room
from culm.model.context import Context
from culm.model.init import GPT2, Initialization, Zero, initialize
from culm.model.linear import Linear
from culm.model.logprobs import Kernels, capped, logprobs_of
from culm.model.mlp import FeedForward
from culm.model.mlp.gated import SwiGLU
from culm.model.mlp.part import FeedForwardConfig
from culm.model.mtp import MTP, FurtherHead, shifted
from culm.model.norm import Normalization, RMSNormConfig
from culm.model.quantized import BITS, CacheKind, QuantizedCache
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
    mtp: heads that predict tokens beyond the next one (`culm.model.mtp`).
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
    mtp: MTP | None = None

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
        mixed = {a.kv_heads or a.heads for a in self.attention if isinstance(a, GQA)}
        if len(mixed) > 1 and any(a.value_residual for a in self.attention if isinstance(a, GQA)):
            raise ValueError(
                "attention[0].value_residual: values of unequal kv_heads cannot be mixed"
            )
        for part, configs in {"attention": self.attention, "mlp": self.mlp}.items():
            for index, config in enumerate(configs):
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
        parts = [
            (
                attention, mlp, config.width, config.norm, config.residual,
                distinct.index(kind) if kind else -1,
            )
            for attention, mlp, kind in zip(config.attentions, config.mlps, kinds, strict=True)
        ]  # fmt: skip
        self.blocks = nn.ModuleList(Block(*each) for each in parts)
        heads = config.mtp.depth if config.mtp else 0
        self.mtp = nn.ModuleList(
            FurtherHead(Block(*parts[-1]), config.width, config.norm) for _ in range(heads)
        )
        self.norm = config.norm.build(config.width)
        self.head: nn.Module = Linear(config.width, config.vocabulary)
        self.tie()

    def tie(self) -> None:
        """Make the output projection the embedding again, where the settings say so."""
        if self.config.tied:
            self.head.weight = self.embed.weight

    def drop_mtp(self) -> None:
        """Take the heads of multi-token prediction away, where there are any."""
        self.mtp = nn.ModuleList()
        self.config = self.config.model_copy(update={"mtp": None})

    @property
    def every_block(self) -> list[nn.Module]:
        """The blocks of the trunk, and those of multi-token prediction behind them."""
        return [*self.blocks, *(head.block for head in self.mtp)]

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def set_backend(self, backend: Backend) -> int:
        """Compute attention by a backend (`culm.model.attend`) on the device where the model is.

        Gives how many layers cannot; those compute in blocks, which serves every kind.
        """
        others = 0
        for block in self.every_block:
            served = block.attention.serves(backend, self.device)  # type: ignore[union-attr,operator]
            block.attention.backend = backend if served else "blocks"  # type: ignore[union-attr]
            others += not served
        if others:
            say(f"Attention of {others} of {len(self.blocks)} layers in blocks, not {backend}.")
        return others

    @property
    def backends(self) -> list[str]:
        """By which attention is computed, each once."""
        return sorted({str(block.attention.backend) for block in self.every_block})  # type: ignore[union-attr]

    def hidden(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        """The normalised last states (B, T, E) that the head reads."""
        x, _ = self.trunk(tokens, context or Context.plain(tokens))
        return self.normalized(x)

    def hidden_ahead(self, tokens: Tensor, context: Context | None = None) -> list[Tensor]:
        """As `hidden`, and after it what each head of multi-token prediction gives.

        The k-th of these, at token t, has read up to token t + k; where the row or its document
        ends before, it means nothing.
        """
        x, context = self.trunk(tokens, context or Context.plain(tokens))
        states = [self.normalized(x)]
        for by in range(1, len(self.mtp) + 1):
            x = self.ahead(by, x, shifted(tokens, by, 0), context)
            states.append(self.normalized(x, by))
        return states

    def ahead(self, by: int, states: Tensor, tokens: Tensor, context: Context) -> Tensor:
        """States (B, T, E) of head `by` from those of the one before it, the trunk for the first.

        tokens: (B, T), each `by` places behind the token of its state. context: as `trunk` gave it.
        """
        cache = context.cache.layers[len(self.blocks) + by - 1] if context.cache else None
        return self.mtp[by - 1](states, self._embedded(tokens), context, cache)

    def normalized(self, states: Tensor, by: int = 0) -> Tensor:
        """What the head of the vocabulary reads of states of the trunk, or of head `by`."""
        norm = self.mtp[by - 1].norm if by else self.norm
        return _scaled(norm(states), self.head_scale)  # type: ignore[operator]

    def _embedded(self, tokens: Tensor) -> Tensor:
        return _scaled(self.embed(tokens).to(self.dtype), self.config.embedding_scale)

    def trunk(self, tokens: Tensor, context: Context) -> tuple[Tensor, Context]:
        """What the last block gives (B, T, E), and the context as it was there."""
        count = len(self.blocks)
        caches = context.cache.layers[:count] if context.cache else [None] * count
        x = self._embedded(tokens)
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
        return x, context

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
        return self._logprobs(self.hidden(tokens, context), targets, temperature)

    def logprobs_ahead(
        self, tokens: Tensor, targets: Tensor, context: Context | None = None
    ) -> list[Tensor]:
        """As `logprobs`, and after it those of each head of multi-token prediction.

        Those of the k-th, at token t, are of targets[b, t + k], in the same document.
        """
        documents = None if context is None else context.documents
        return [
            self._logprobs(hidden, shifted(targets, by, IGNORED, documents) if by else targets)
            for by, hidden in enumerate(self.hidden_ahead(tokens, context))
        ]

    def _logprobs(self, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        cap = self.config.softcap
        return logprobs_of(hidden, self.head, targets, temperature, self.kernels, cap)

    def cache(
        self,
        slots: int,
        length: int,
        kind: CacheKind = "plain",
        spare: int = 0,
        further: bool = False,
    ) -> Cache:
        """An empty cache for `slots` sequences of up to `length` tokens.

        kind: int8 and int4 round the keys and values of layers that keep those of all tokens.
        spare: by so many tokens a sequence may be cut, exactly, where layers have a window; what
        keeps all tokens may be cut anywhere, and a state nowhere.
        further: also for the heads of multi-token prediction, behind the layers.

        Raises:
            SettingError: no layer does, or the kind is not known.
        """
        if kind not in BITS:
            raise SettingError(f"cache: {kind!r} is not one of {', '.join(BITS)}")
        room = Room(slots, length, self.dtype, self.device, BITS[kind], spare)
        blocks = self.every_block if further else self.blocks
        layers = [block.attention.cache(room) for block in blocks]  # type: ignore[union-attr,operator]
        if room.bits and not any(isinstance(layer, QuantizedCache) for layer in layers):
            raise SettingError(
                f"cache: {kind} rounds keys and values of all tokens, and no layer of this model "
                "keeps those (but latents, a window or a state); take cache=plain"
            )
        return Cache(layers, slots, length)


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1.0 else x * factor
