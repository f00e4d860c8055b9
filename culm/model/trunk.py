"""The trunk of a decoder: blocks between its two ends, on vectors instead of tokens.

    x: (B, T, E) --> block 0 --> block 1 --> ... --> norm --> states (B, T, E)

`Transformer` adds an embedding and an output head; a model of concepts or patches has other ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import cycle, islice
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from culm.config import Config, SettingError, listed
from culm.log import say
from culm.model.attention import Attention
from culm.model.attention.gqa import GroupedQuery
from culm.model.attention.part import AttentionConfig
from culm.model.block import Block, Residual
from culm.model.cache import Cache
from culm.model.context import Context, LayerContext
from culm.model.init import GPT2, Initialization, initialize
from culm.model.layer_cache import CacheSpec, LayerCache
from culm.model.mlp import FeedForward
from culm.model.mlp.gated import SwiGLU
from culm.model.mlp.part import FeedForwardConfig
from culm.model.norm import Normalization, RMSNormConfig
from culm.model.quantized_cache import BITS, CacheKind, QuantizedCache
from culm.model.rope import Rope
from culm.model.scaling import CompleteP, Scaling
from culm.model.score_rule import Backend


class TrunkConfig(Config):
    """Blocks of one width.

    width: elements of a state. layers: count of blocks.
    context: positions of a row in training.
    attention, mlp: one part for all layers, or a list that is repeated over them.
    norm: its kind, everywhere. residual: how the branches of a block are added.
    head_scale: factor of the final states (muP). init: initial weights (`culm.model.init`).
    scaling: how learning rates and initial weights follow from those of a smaller model
        (`culm.model.scaling`).
    """

    width: PositiveInt
    layers: Annotated[PositiveInt, Field(le=10_000)]  # a broken file may ask for any number
    context: PositiveInt = 512
    attention: Annotated[tuple[Attention, ...], BeforeValidator(listed), Field(min_length=1)]
    mlp: Annotated[tuple[FeedForward, ...], BeforeValidator(listed), Field(min_length=1)] = (
        SwiGLU(),
    )
    norm: Normalization = RMSNormConfig()
    residual: Residual = Residual()
    head_scale: PositiveFloat = 1.0
    init: Initialization = GPT2()
    scaling: Scaling | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if isinstance(self.scaling, CompleteP) and isinstance(self.init, GPT2):
            raise ValueError(
                "init: gpt2 already scales weights with the depth, as completep does with "
                "branches; use init=llama or zero"
            )
        grouped = [part for part in self.attention if isinstance(part, GroupedQuery)]
        mixed = {part.kv_heads or part.heads for part in grouped}
        if len(mixed) > 1 and any(part.value_residual for part in grouped):
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

    @property
    def rotaries(self) -> list[tuple[Rope, int]]:
        """The distinct rotary embeddings of all layers, which share their cosines and sines."""
        kinds = [attention.rotary(self.width) for attention in self.attentions]
        return [kind for kind in dict.fromkeys(kinds) if kind is not None]

    def resolved(self) -> Self:
        """The same model with every default filled in and each list as short as possible."""
        same = self.scaled()
        attention = tuple(part.resolved(self.width) for part in same.attention)
        mlp = tuple(part.resolved(self.width) for part in same.mlp)
        return same.model_copy(update={"attention": attention, "mlp": mlp}).shortened()

    def scaled(self) -> Self:
        """The model as it is computed: the factors of its scaling rule are in its settings."""
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

    def shortened(self) -> Self:
        """The same model with each list as short as possible."""
        parts = {"attention": _period(self.attentions), "mlp": _period(self.mlps)}
        return self.model_copy(update=parts)

    def build(self, seed: int = 0, device: torch.device | str = "cpu") -> Trunk:
        """An initialised trunk; on the meta device it has shapes only."""
        with torch.device("meta"):
            trunk = Trunk(self)
        if torch.device(device).type != "meta":
            trunk.to_empty(device=device)
            self.fill(trunk, seed)
        return trunk

    def fill(self, model: nn.Module, seed: int) -> None:
        """Initialise every parameter by its name from the seed."""
        initialize(model, seed, self.layers, self.init)
        if self.scaling is not None:
            self.scaling.shrink(model, self.width)


def _period(parts: list[Any]) -> tuple[Any, ...]:
    """The shortest start of a list that gives the list when repeated."""
    for length in range(1, len(parts) + 1):
        if all(part == parts[index % length] for index, part in enumerate(parts)):
            return tuple(parts[:length])
    raise AssertionError("a list repeats itself")


class Trunk(nn.Module):
    """x: (B, T, E) -> normalised states (B, T, E).

    whole: within it this rank computes alone, with all weights, where several ranks compute a row
    together (`culm.parallel.parallelize`).

    Activations are computed in `dtype`, whatever the precision of the weights. `trained_on` are the
    stages of its training in words, which files of models carry; none are known of a new model.
    """

    config: TrunkConfig
    other_ends: ClassVar[tuple[str, ...]] = ()  # parts that no scaling rule knows, by attribute

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        self.dtype = torch.float32
        self.whole: Callable[[], AbstractContextManager[None]] = nullcontext
        self.trained_on: tuple[str, ...] = ()
        config = config.scaled()
        self.head_scale = config.head_scale
        self.rotations = nn.ModuleList(rope.build(dim) for rope, dim in config.rotaries)
        self.blocks = nn.ModuleList(new_blocks(config, range(config.layers)))
        self.norm = config.norm.build(config.width)

    @property
    def every_block(self) -> list[Block]:
        """The blocks of the trunk, and those of other ends after them."""
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def set_backend(self, backend: Backend) -> int:
        """Set the attention backend (`culm.model.attend`) for the device where the model is.

        Layers that it does not support use `blocks`, which supports all; returns their number.
        """
        others, blocks = 0, self.every_block
        for block in blocks:
            served = block.attention.serves(backend, self.device)
            block.attention.backend = backend if served else "blocks"
            others += not served
        if others:
            say(
                f"{others} of {len(blocks)} layers fall back to the 'blocks' attention backend; "
                f"{backend} does not support them."
            )
        return others

    @property
    def backends(self) -> list[str]:
        """The attention backends in use, each once."""
        return sorted({block.attention.backend for block in self.every_block})

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """x: (B, T, E), such as embeddings -> normalised states (B, T, E)."""
        return self.normalized(self.run(x.to(self.dtype), context or Context.plain(x))[0])

    def run(self, x: Tensor, context: Context) -> tuple[Tensor, LayerContext]:
        """The output of the last block (B, T, E), and the context after it."""
        return self.through(range(len(self.blocks)), x, self.layer_context(context, x))

    def layer_context(self, context: Context, inputs: Tensor) -> LayerContext:
        """The context of the blocks. inputs: (B, T, E), read by the first one."""
        rotations = tuple(rotation(context.positions) for rotation in self.rotations)
        return LayerContext.of(context, rotations, inputs)

    def through(
        self, layers: Iterable[int], x: Tensor, context: LayerContext
    ) -> tuple[Tensor, LayerContext]:
        """The output of the last of these blocks, and the context after it."""
        for layer in layers:
            cache = context.cache.layers[layer] if context.cache else None
            x, context = run_block(self.blocks[layer], x, context, cache)
        return x, context

    def normalized(self, states: Tensor) -> Tensor:
        """The last block's states as an output head reads them."""
        return multiplied(self.norm(states), self.head_scale)

    def cache(self, slots: int, length: int, kind: CacheKind = "plain", rollback: int = 0) -> Cache:
        """An empty cache for `slots` sequences of up to `length` tokens.

        kind: int8 and int4 quantise keys and values in layers that store those of all tokens.
        rollback: number of tokens by which a layer with a window lets a sequence be cut. Layers
        that store all tokens can be cut anywhere, and a state cannot be cut.

        Raises:
            SettingError: the kind is not known, or no layer can be quantised.
        """
        return self._cache(list(self.blocks), slots, length, kind, rollback)

    def _cache(
        self, blocks: list[nn.Module], slots: int, length: int, kind: CacheKind, rollback: int
    ) -> Cache:
        if kind not in BITS:
            raise SettingError(f"cache: {kind!r} is not one of {', '.join(BITS)}")
        spec = CacheSpec(slots, length, self.dtype, self.device, BITS[kind], rollback)
        layers = [block.attention.cache(spec) for block in blocks]  # type: ignore[union-attr, operator]
        if spec.bits and not any(isinstance(layer, QuantizedCache) for layer in layers):
            raise SettingError(
                f"cache: {kind} quantises keys and values of all tokens, but the layers of this "
                "model store latents, a window or a state; use cache=plain"
            )
        return Cache(layers, slots, length)


def new_blocks(config: TrunkConfig, layers: Iterable[int]) -> list[Block]:
    """The blocks of these layers."""
    attentions, mlps, rotaries = config.attentions, config.mlps, config.rotaries

    def block(layer: int) -> Block:
        rotary = attentions[layer].rotary(config.width)
        rotation = rotaries.index(rotary) if rotary else -1
        return Block(
            attentions[layer], mlps[layer], config.width, config.norm, config.residual, rotation
        )

    return [block(layer) for layer in layers]


def run_block(
    block: nn.Module, x: Tensor, context: LayerContext, cache: LayerCache | None
) -> tuple[Tensor, LayerContext]:
    """The output of a block, and the context of the next one."""
    x, values, routing = block(x, context, cache)
    context.record_routing(routing)
    if context.values is None and values is not None:
        context = replace(context, values=values)
    return x, context


def multiplied(x: Tensor, factor: float) -> Tensor:
    """x * factor, without the multiplication if the factor is 1."""
    return x if factor == 1.0 else x * factor
