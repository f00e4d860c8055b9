"""The one model: a decoder whose parts are chosen by its settings (`culm.model.config`)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from culm.batch import IGNORED
from culm.config import SettingError
from culm.log import say
from culm.model.attend import Backend
from culm.model.block import Block
from culm.model.cache import Cache, CacheSpec
from culm.model.context import Context
from culm.model.linear import Linear
from culm.model.logprobs import Kernels, capped, logprobs_of
from culm.model.mtp import MTPHead, shifted
from culm.model.quantized_cache import BITS, CacheKind, QuantizedCache

if TYPE_CHECKING:
    from culm.model.config import TransformerConfig


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
            MTPHead(Block(*parts[-1]), config.width, config.norm) for _ in range(heads)
        )
        self.norm = config.norm.build(config.width)
        outputs = 1 if config.head == "scalar" else config.vocabulary
        self.head: nn.Module = Linear(config.width, outputs)
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
    def every_block(self) -> list[Block]:
        """The blocks of the trunk, and those of multi-token prediction behind them."""
        return cast("list[Block]", [*self.blocks, *(head.block for head in self.mtp)])

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def set_backend(self, backend: Backend) -> int:
        """Compute attention by a backend (`culm.model.attend`) on the device where the model is.

        Gives how many layers cannot; those compute in blocks, which serves every kind.
        """
        others = 0
        for block in self.every_block:
            served = block.attention.serves(backend, self.device)
            block.attention.backend = backend if served else "blocks"
            others += not served
        if others:
            every = len(self.every_block)
            say(f"Attention of {others} of {every} layers in blocks, not {backend}.")
        return others

    @property
    def backends(self) -> list[str]:
        """By which attention is computed, each once."""
        return sorted({block.attention.backend for block in self.every_block})

    def hidden(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        """The normalised last states (B, T, E) that the head reads."""
        x, _ = self.trunk(tokens, context or Context.plain(tokens))
        return self.normalized(x)

    def mtp_hidden(self, tokens: Tensor, context: Context | None = None) -> list[Tensor]:
        """As `hidden`, and after it what each head of multi-token prediction gives.

        The k-th of these, at token t, has read up to token t + k; where the row or its document
        ends before, it means nothing.
        """
        x, context = self.trunk(tokens, context or Context.plain(tokens))
        states = [self.normalized(x)]
        for by in range(1, len(self.mtp) + 1):
            x = self.mtp_step(by, x, shifted(tokens, by, 0), context)
            states.append(self.normalized(x, by))
        return states

    def mtp_step(self, by: int, states: Tensor, tokens: Tensor, context: Context) -> Tensor:
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
            context.record_routing(routing)
        return x, context

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (..., E), as `hidden` gives it -> (..., V) fp32."""
        return capped(self.head(hidden).float(), self.config.softcap)

    def forward(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        return self.logits(self.hidden(tokens, context))

    def scores(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        """One number a token, by a scalar head: (B, T) fp32."""
        return self.head(self.hidden(tokens, context)).float()[..., 0]

    def logprobs(
        self,
        tokens: Tensor,
        targets: Tensor,
        context: Context | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Natural-log probability of each target, (B, T) fp32; 0 where the target is ignored."""
        return self._logprobs(self.hidden(tokens, context), targets, temperature)

    def mtp_logprobs(
        self, tokens: Tensor, targets: Tensor, context: Context | None = None
    ) -> list[Tensor]:
        """As `logprobs`, and after it those of each head of multi-token prediction.

        Those of the k-th, at token t, are of targets[b, t + k], in the same document.
        """
        documents = None if context is None else context.documents
        return [
            self._logprobs(hidden, shifted(targets, by, IGNORED, documents) if by else targets)
            for by, hidden in enumerate(self.mtp_hidden(tokens, context))
        ]

    def _logprobs(self, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        cap = self.config.softcap
        return logprobs_of(hidden, self.head, targets, temperature, self.kernels, cap)

    def cache(
        self,
        slots: int,
        length: int,
        kind: CacheKind = "plain",
        rollback: int = 0,
        with_mtp: bool = False,
    ) -> Cache:
        """An empty cache for `slots` sequences of up to `length` tokens.

        kind: int8 and int4 round the keys and values of layers that keep those of all tokens.
        rollback: by so many tokens a sequence may be cut, exactly, where layers have a window; what
        keeps all tokens may be cut anywhere, and a state nowhere.
        further: also for the heads of multi-token prediction, behind the layers.

        Raises:
            SettingError: no layer does, or the kind is not known.
        """
        if kind not in BITS:
            raise SettingError(f"cache: {kind!r} is not one of {', '.join(BITS)}")
        spec = CacheSpec(slots, length, self.dtype, self.device, BITS[kind], rollback)
        blocks = self.every_block[: None if with_mtp else len(self.blocks)]
        layers = [block.attention.cache(spec) for block in blocks]
        if spec.bits and not any(isinstance(layer, QuantizedCache) for layer in layers):
            raise SettingError(
                f"cache: {kind} rounds keys and values of all tokens, and no layer of this model "
                "keeps those (but latents, a window or a state); take cache=plain"
            )
        return Cache(layers, slots, length)


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1.0 else x * factor
