"""The states of one model on their way through the stages of a pipeline.

    stage 0: tokens -> embedding -> layers --- x ---> stage 1: layers --- x ---> ... -> norm, head

Later layers may read the input of the first layer or its values too, which then travel with x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from culm.batch import Batch
from culm.model.attention.gqa import GroupedQueryAttention
from culm.model.context import Context, LayerContext
from culm.model.transformer import Transformer
from culm.parallel.axis import Axis
from culm.parallel.pieces import Pieces
from culm.parallel.sequence import SequenceShards

Streams = tuple[Tensor, ...]


class States:
    """What a model computes on this rank: the layers of the stage at work, from what arrived.

    Outside of a stage, as for old log-probabilities before a step, all stages compute one after the
    other, and every rank gets what the last one gives.
    """

    def __init__(self, model: Transformer, pieces: Pieces, shards: SequenceShards) -> None:
        self.model, self.pieces, self.shards = model, pieces, shards
        self.axis: Axis = pieces.axis
        self.learns = any(p.requires_grad for p in model.parameters())
        config = model.config
        grouped = {
            layer: block.attention
            for layer, block in enumerate(model.blocks)
            if isinstance(block.attention, GroupedQueryAttention)
        }
        self._values = {
            layer: (part.kv_heads, part.head_dim)
            for layer, part in grouped.items()
            if part.shares is not None
        }
        self._gains = config.residual.gains
        self._plain = model.states, model.normalized, model.hidden_logprobs, model.head_scores
        self._stage: int | None = None
        self._arrived: Streams = ()
        self._left: LayerContext | None = None
        self._is_whole = False

    def install(self) -> None:
        """Let the model compute what this rank has of it."""
        model = self.model
        model.states = self.states  # type: ignore[method-assign]
        model.normalized = self._normalized  # type: ignore[method-assign]
        model.hidden_logprobs = self._hidden_logprobs  # type: ignore[method-assign]
        model.head_scores = self._head_scores  # type: ignore[method-assign]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """This rank computes alone, with all layers."""
        with self.pieces.whole():
            self._is_whole = True
            try:
                yield
            finally:
                self._is_whole = False

    # -- within a stage -------------------------------------------------------------------------

    @contextmanager
    def stage(self, number: int, arrived: Streams) -> Iterator[None]:
        """Compute the layers of a stage, once."""
        self._stage, self._arrived = number, arrived
        try:
            yield
        finally:
            self._stage, self._arrived, self._left = None, (), None

    def advance(self, batch: Batch, context: Context) -> Streams:
        """What the next stage reads."""
        assert self._stage is not None
        x = self.model.advance(batch.tokens, context)
        assert self._left is not None
        return self._streams(self._stage, x, self._left)

    def shapes(self, stage: int, rows: int, tokens: int) -> list[tuple[int, ...]]:
        """Of what a stage gives to the next one, for a batch of this size."""
        tensor, context = self.shards.tensor.size, self.shards.context.size
        length = -(-tokens // self.shards.multiple) * self.shards.multiple // context
        x: tuple[int, ...] = (rows, length // tensor, self.model.config.width)
        found = [x, x] if self._gains else [x]
        if (values := self._carried(stage)) is not None:
            heads, size = values
            found.append((rows, length, heads // tensor, size))
        return found

    def states(self, tokens: Tensor, context: Context) -> tuple[Tensor, LayerContext]:
        """In place of `Transformer.states`."""
        if self._is_whole:
            return self._plain[0](tokens, context)
        if self._stage is None:
            return self._in_turn(tokens, context)
        if self._left is not None:
            raise RuntimeError("a stage of a pipeline computes each model once in a micro-batch")
        x, self._left = self._computed(self._stage, self._arrived, tokens, context)
        return x, self._left

    def _computed(
        self, stage: int, arrived: Streams, tokens: Tensor, context: Context
    ) -> tuple[Tensor, LayerContext]:
        model = self.model
        if stage == 0:
            x = model.start(tokens, context)
            inner = model.layer_context(context, x)
        else:
            x, *more = arrived
            inner = model.layer_context(context, more.pop(0) if self._gains else x)
            inner = replace(inner, values=more.pop(0) if more else None)
        return model.through(self.pieces.stages[stage], x, inner)

    def _streams(self, stage: int, x: Tensor, inner: LayerContext) -> Streams:
        found = [x]
        if self._gains:
            assert inner.inputs is not None
            found.append(inner.inputs)
        if self._carried(stage) is not None:
            assert inner.values is not None
            found.append(inner.values)
        return tuple(found)

    def _carried(self, stage: int) -> tuple[int, int] | None:
        """Heads and their size of the values that layers after a stage read."""
        end = self.pieces.stages[stage].stop
        before = [size for layer, size in self._values.items() if layer < end]
        return before[0] if before and max(self._values) >= end else None

    # -- outside of a stage ---------------------------------------------------------------------

    def _in_turn(self, tokens: Tensor, context: Context) -> tuple[Tensor, LayerContext]:
        if torch.is_grad_enabled():
            raise RuntimeError("outside of a step, the stages of a pipeline compute no gradients")
        arrived: Streams = ()
        rows, length = tokens.shape
        length *= self.shards.context.size  # of the whole rows
        for number, _ in enumerate(self.pieces.stages):
            owner = self.pieces.owner(number)
            shapes = self.shapes(number, rows, length)
            if owner == self.axis.rank:
                arrived = self._streams(number, *self._computed(number, arrived, tokens, context))
            else:
                arrived = tuple(self._empty(shape) for shape in shapes)
            arrived = tuple(self.axis.broadcast(one.contiguous(), owner) for one in arrived)
        return arrived[0], self.model.layer_context(context, arrived[0])

    def _empty(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.model.dtype, device=self.model.device)

    def _normalized(self, states: Tensor) -> Tensor:
        return self._of_the_end(lambda: self._plain[1](states), states.shape, self.model.dtype)

    def _hidden_logprobs(
        self,
        hidden: Tensor,
        targets: Tensor,
        temperature: float = 1.0,
        vocabulary: int | None = None,
    ) -> Tensor:
        plain = self._plain[2]
        return self._of_the_end(
            lambda: plain(hidden, targets, temperature, vocabulary), targets.shape
        )

    def _head_scores(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        if self._is_whole or self._stage is not None:
            return self._plain[3](tokens, context)
        hidden = self.model.hidden(tokens, context)
        shape = (*tokens.shape, self.model.config.scores)
        return self._of_the_end(lambda: self.model.head(hidden.float()), shape)

    def _of_the_end(
        self,
        compute: Callable[[], Tensor],
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """What the last stage computes, on every rank."""
        if self._is_whole or self._stage is not None:
            return compute()
        owner = self.pieces.owner(len(self.pieces.stages) - 1)
        mine = owner == self.axis.rank
        found = compute().to(dtype).contiguous() if mine else self._empty(shape, dtype)
        return self.axis.broadcast(found, owner)


def padded(x: Tensor, shape: Sequence[int]) -> Tensor:
    """With zeros behind, in every dimension."""
    missing = [size - own for own, size in zip(x.shape, shape, strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [pad for size in reversed(missing) for pad in (0, size)])


def arrived(x: Tensor, shape: Sequence[int]) -> Tensor:
    """What another stage sent, without what `padded` added."""
    return _Arrived.apply(x)[tuple(slice(size) for size in shape)]


class _Arrived(torch.autograd.Function):
    """Its gradient is contiguous, as what is sent must be."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Tensor:
        return grads[0].contiguous()
