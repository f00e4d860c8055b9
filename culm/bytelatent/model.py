"""Models of patches of bytes: a Transformer over bytes whose input is more than an embedding.

    bytes --> embedding --> encoder --> patches --> latent model --> spread --> own blocks --> head
                               |                                        ^      (the decoder)
                               +----------------------------------------+

Each position is a byte, and predicts the next one; so the loop, evaluation and the engine see an
ordinary causal model whose tokens are bytes. `culm.bytelatent.bridge` has all in which the models
differ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, PositiveInt, model_validator
from torch import Tensor, nn

from culm.bytelatent.bridge import Bridge, Ends
from culm.bytelatent.cache import PatchCache
from culm.bytelatent.patches import Patches
from culm.bytelatent.reading import Reading
from culm.config import Config, SettingError, listed
from culm.model.attention import Attention
from culm.model.attention.gqa import GroupedQuery
from culm.model.cache import Cache
from culm.model.context import CacheView, Context, LayerContext, Record
from culm.model.init import initialize
from culm.model.layer_cache import CacheSpec, LayerCache
from culm.model.mlp import FeedForward
from culm.model.mlp.gated import SwiGLU
from culm.model.quantized_cache import CacheKind
from culm.model.score_rule import Backend
from culm.model.transformer import Transformer, TransformerConfig
from culm.model.trunk import Trunk, TrunkConfig

BYTES = 256


class Stack(Config):
    """Blocks of one part of a patch model.

    width: elements of a state. layers: count of blocks. attention, mlp: as in the model itself.
    """

    width: PositiveInt
    layers: Annotated[PositiveInt, Field(le=10_000)]
    attention: Annotated[tuple[Attention, ...], BeforeValidator(listed), Field(min_length=1)]
    mlp: Annotated[tuple[FeedForward, ...], BeforeValidator(listed), Field(min_length=1)] = (
        SwiGLU(),
    )

    @model_validator(mode="after")
    def _fits(self) -> Stack:
        TrunkConfig(**dict(self))
        _check_attention(self.attention)
        return self


class PatchConfig(TransformerConfig, ABC):
    """The settings of every patch model; its own blocks are the decoder, over bytes.

    latent: the model of patches.
    """

    kind: Any
    latent: Stack

    @property
    def reader(self) -> Stack | None:
        """The blocks before the patches; None: there are none."""
        return None

    @property
    def bare(self) -> bool:
        """Whether the states of the latent model are added as they are, not normalised."""
        return False

    @abstractmethod
    def bridge(self) -> Bridge:
        """Its way from bytes to patches and back, not initialised."""

    @model_validator(mode="after")
    def _patched(self) -> PatchConfig:
        if self.vocabulary < BYTES:
            raise ValueError(f"vocabulary: {self.vocabulary} is less than the {BYTES} bytes")
        if self.mtp is not None:
            raise ValueError("mtp: heads that skip bytes are not there for patches; leave it out")
        if self.masked:
            raise ValueError("masked: a patch is read from left to right; leave it out")
        if self.scaling is not None:
            raise ValueError("scaling: no rule is known for patches; leave it out")
        if self.reader is not None and self.reader.width != self.width:
            raise ValueError(
                f"encoder.width: {self.reader.width} differs from the width of the decoder, "
                f"{self.width}"
            )
        _check_attention(self.attention)
        return self

    def trunk(self, stack: Stack) -> TrunkConfig:
        """The settings of one part, with what it shares with the whole model."""
        shared = {"norm": self.norm, "residual": self.residual, "init": self.init}
        return TrunkConfig(**dict(stack), **shared, context=self.context)

    def new(self) -> PatchModel:
        return PatchModel(self)

    def fill(self, model: nn.Module, seed: int) -> None:
        """Initialise every parameter by its name from the seed, for the depth of all parts."""
        stacks = [stack for stack in (self.reader, self.latent) if stack is not None]
        initialize(model, seed, self.layers + sum(s.layers for s in stacks), self.init)


class EncodedPatches(PatchConfig, ABC):
    """With an encoder, whose states at some bytes the latent model reads, widened by zeros."""

    encoder: Stack

    @model_validator(mode="after")
    def _wider(self) -> EncodedPatches:
        if self.latent.width < self.width:
            raise ValueError(
                f"latent.width: {self.latent.width} is less than the width of bytes, {self.width}"
            )
        return self

    @property
    def reader(self) -> Stack:
        return self.encoder


def _check_attention(parts: Sequence[Attention]) -> None:
    for index, part in enumerate(parts):
        if not isinstance(part, GroupedQuery):
            raise ValueError(
                f"attention[{index}].kind: patches are ragged over a cache, which {part.kind} does "
                "not know; use gqa"
            )


class PatchModel(Transformer):
    """tokens: (B, T) int64, bytes and special tokens -> logits (B, T, V) fp32.

    It trains on one process, or as copies (`parallel.data=ddp`).

    counted: whether patches are counted; a plan, in which bytes have no values, expects them.
    """

    config: PatchConfig
    divisible = False

    def __init__(self, config: PatchConfig) -> None:
        super().__init__(config)
        self.counted = True
        self.encoder: Trunk | None = None
        if config.reader is not None:
            self.encoder = _without_norm(Trunk(config.trunk(config.reader)))
        self.latent = Trunk(config.trunk(config.latent))
        if config.bare:
            _without_norm(self.latent)
        self.bridge = config.bridge()

    @property
    def parts(self) -> list[Trunk]:
        """The models within, in the order in which the cache has their layers."""
        found = (self.encoder, self.latent, self.bridge.model)
        return [part for part in found if part is not None]

    def set_backend(self, backend: Backend) -> int:
        return super().set_backend(backend) + sum(part.set_backend(backend) for part in self.parts)

    def states(self, tokens: Tensor, context: Context) -> tuple[Tensor, LayerContext]:
        x, inner = self._decoded(tokens, context)
        return self.run(x, inner)

    def start(self, tokens: Tensor, context: Context) -> Tensor:
        return self._decoded(tokens, context)[0]

    def _decoded(self, tokens: Tensor, context: Context) -> tuple[Tensor, Context]:
        """The input of the decoder (B, T, E), and its context."""
        if context.sequence is not None:
            raise SettingError("parallel.context: patches need whole rows; set it to 1")
        bridge, reading = self.bridge, self._reading(tokens, context)
        x, ends = self._encoded(reading)
        counted = self.counted and not tokens.is_meta
        patches = reading.patches(ends.at, None if counted else bridge.bytes_per_patch)
        context.record(Record("patches_per_byte", patches.counts.sum().float()))
        latent = bridge.into(x, patches, ends, reading)
        if latent.shape[1]:
            latent = self.latent.run(latent, self._of(patches, context))[0]
        latent = self.latent.normalized(latent)
        outward = bridge.outward(latent, patches, ends, reading)
        spread = reading.spread(outward, patches)
        merged = bridge.merged(x, spread, patches, ends, reading)
        return merged, bridge.decoded(context, patches)

    def _encoded(self, reading: Reading) -> tuple[Tensor, Ends]:
        """The states of the encoder (B, T, E), and where patches end."""
        context = reading.context
        x = self.bridge.embedded(super().start(reading.tokens, context), reading)
        if self.encoder is not None:
            x = self.encoder.run(x, self.within(self.encoder, context))[0]
        return x, self.bridge.ends(x, reading)

    @torch.no_grad()
    def ends(self, tokens: Tensor) -> Tensor:
        """(B, T) bool: the bytes with which patches end, for inspection; one document per row."""
        return self._encoded(self._reading(tokens, Context.plain(tokens)))[1].at

    def _reading(self, tokens: Tensor, context: Context) -> Reading:
        """The bytes, which a cache then has too."""
        cache: PatchCache | None = None
        if context.cache is not None:
            last = context.cache.layers[-1]
            assert isinstance(last, PatchCache)
            cache = last
        model = self.bridge.model
        own = None if model is None else self.within(model, context)
        reading = Reading(tokens, context, cache, own)
        reading.keep("tokens", tokens)
        return reading

    def within(self, part: Trunk, context: Context) -> Context:
        """The same context for one of `parts`, whose layers have their own places in the cache."""
        if context.cache is None:
            return context
        start = len(self.blocks)
        for other in self.parts:
            if other is part:
                break
            start += len(other.blocks)
        layers = context.cache.layers[start : start + len(part.blocks)]
        return replace(context, cache=replace(context.cache, layers=layers))

    def _of(self, patches: Patches, context: Context) -> Context:
        """The context of the latent model."""
        facts = Context(
            patches.positions, patches.documents, routings=context.routings,
            records=context.records, adapters=context.adapters,
        )  # fmt: skip
        if context.cache is None:
            return facts
        layers = self.within(self.latent, context).view.layers
        length = int(patches.positions.max()) + 1
        view = CacheView(layers, context.cache.slot, length, patches.ends)
        return replace(facts, cache=view)

    def cache(self, slots: int, length: int, kind: CacheKind = "plain", rollback: int = 0) -> Cache:
        """As `Trunk.cache`; the layers of `parts` follow, and what is kept of bytes.

        Raises:
            SettingError: the kind is not plain.
        """
        if kind != "plain":
            raise SettingError(
                f"cache: {kind} rounds groups of consecutive tokens, which patches are not; use "
                "cache=plain"
            )
        layers: list[LayerCache] = list(super().cache(slots, length, kind, rollback).layers)
        for part in self.parts:  # patches have a spare entry, as in `PatchCache`
            if part is not self.bridge.model:  # which decides in fp32
                part.dtype = self.dtype
            layers += part.cache(slots, length + (part is self.latent), kind, rollback).layers
        spec = CacheSpec(slots, length, self.dtype, self.device)
        number = ((), torch.int64)
        kept = {"tokens": number, "patches": number, "latent": ((self.bridge.width,), None)}
        return Cache([*layers, PatchCache(spec, {**kept, **self.bridge.kept})], slots, length)


def _without_norm(trunk: Trunk) -> Trunk:
    """The same, whose states another part normalises."""
    trunk.norm = nn.Identity()
    return trunk
