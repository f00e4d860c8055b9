"""Rows of which several ranks hold a part each: along the axis "context", and within its part of a
row, outside of the parallel matmuls, along "tensor" (sequence parallelism, arXiv 2205.05198).

    row of 16 tokens, context=2, tensor=2      0 1 2 3 4 5 6 7 8 9 a b c d e f
    context rank 0 (balanced)                  0 1 2 3                 c d e f
      tensor rank 0 of it                      0 1 2 3
      tensor rank 1 of it                                              c d e f

Each rank computes the whole loss, and its share of it counts: 1 / (ranks that compute the same).
Then the adjoint of every exchange is the usual one (of gathering: the sum, scattered), and what
each rank finds for a parameter that all of them hold is a part of its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.model.context import Context, LayerContext, Routing, SequenceAttention
from culm.model.transformer import Transformer
from culm.parallel.axis import Axis
from culm.parallel.collectives import gathered, summed
from culm.parallel.whole import whole_parameters

Attention = Callable[[Context], SequenceAttention]
C = TypeVar("C", bound=Context)


class SequenceShards:
    """The parts of rows on the ranks that compute a row together.

    attention: makes the attention over all parts, for the context of the whole rows. balanced:
    each context rank holds a part from the start and one from the end of a row, since the causal
    attention of late tokens is more work. on: off for inference, where each rank has whole rows.
    """

    def __init__(
        self,
        tensor: Axis,
        context: Axis,
        attention: Attention | None = None,
        balanced: bool = False,
    ) -> None:
        self.tensor, self.context = tensor, context
        self.attention, self.balanced, self.on = attention, balanced, True

    @property
    def multiple(self) -> int:
        """What lengths of rows are padded to."""
        pieces = 2 * self.context.size if self.balanced else self.context.size
        return self.tensor.size * pieces

    @contextmanager
    def off(
        self, model: Transformer, others: Callable[[], AbstractContextManager[None]]
    ) -> Iterator[None]:
        """Each rank computes whole rows with whole parameters. others: of other layers."""
        self.on = False
        try:
            with whole_parameters(model), others():
                yield
        finally:
            self.on = True

    def split(self, tokens: Tensor, context: Context) -> tuple[Tensor, Context]:
        """Tokens (B, T) and context of the part of this context rank; rows are padded first."""
        missing = -tokens.shape[1] % self.multiple
        if missing:
            tokens, context = _padded(tokens, context, missing)
        if self.context.size == 1:
            return tokens, context
        assert self.attention is not None
        own = self.order(tokens.shape[1], tokens.device)[self.context.rank]
        sequence = self.attention(context)
        return tokens[:, own], replace(_select(context, own), sequence=sequence)

    def join(self, states: Tensor, length: int) -> Tensor:
        """States of whole rows (B, length, E) from the parts of all ranks."""
        states = gathered(gathered(states, 1, self.tensor), 1, self.context)
        if self.balanced and self.context.size > 1:
            order = self.order(states.shape[1], states.device).flatten()
            states = states[:, order.argsort()]
        return states[:, :length]

    def order(self, length: int, device: torch.device) -> Tensor:
        """(context ranks, length / context ranks): the tokens of each context rank."""
        ranks, places = self.context.size, torch.arange(length, device=device)
        if not self.balanced:
            return places.view(ranks, -1)
        pieces = places.view(2 * ranks, -1)
        return torch.cat((pieces[:ranks], pieces[ranks:].flip(0)), 1)

    def own(self, x: Tensor) -> Tensor:
        """The part of this tensor-parallel rank, of (B, T, ...) that all of them hold."""
        return self.tensor.part(x, 1) if self.on else x

    def own_context(self, context: LayerContext) -> LayerContext:
        """What is known of the part of this rank."""
        if not self.on or self.tensor.size == 1:
            return context
        length = context.positions.shape[1] // self.tensor.size
        first = length * self.tensor.rank
        places = torch.arange(first, first + length, device=context.positions.device)
        return _select(context, places)


def hold_parts(model: Transformer, shards: SequenceShards) -> None:
    """Let a model take whole rows and give the states of whole rows, and compute its part of them.

    Feed-forwards that are not divided, such as experts, get the tokens that the rank holds, and
    what their routers did is summed over the ranks.
    """
    for block in model.every_block:
        if not block.mlp.tensor_parallel:
            block.mlp.register_forward_pre_hook(
                lambda module, args: (args[0], shards.own_context(args[1]))
            )
            block.mlp.register_forward_hook(lambda module, args, out: _sum_routing(args[1], shards))
    hidden, mtp_hidden, advance = model.hidden, model.mtp_hidden, model.advance

    def whole_hidden(tokens: Tensor, context: Context | None = None) -> Tensor:
        if not shards.on:
            return hidden(tokens, context)
        inner = shards.split(tokens, context or Context.plain(tokens))
        return shards.join(hidden(*inner), tokens.shape[1])

    def whole_mtp_hidden(
        tokens: Tensor, context: Context | None = None, ahead: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        if not shards.on:
            return mtp_hidden(tokens, context, ahead)
        known = context or Context.plain(tokens)
        later = [shards.split(one, known)[0] for one in ahead or model.ahead(tokens)]
        every = mtp_hidden(*shards.split(tokens, known), later)
        return [shards.join(states, tokens.shape[1]) for states in every]

    def advance_part(tokens: Tensor, context: Context) -> Tensor:
        return advance(*shards.split(tokens, context))

    model.advance = advance_part  # type: ignore[method-assign]
    model.hidden = whole_hidden  # type: ignore[method-assign]
    model.mtp_hidden = whole_mtp_hidden  # type: ignore[method-assign]


def _sum_routing(context: LayerContext, shards: SequenceShards) -> None:
    """Make what a router recorded that of whole rows."""
    routing = context.outputs.routing
    if routing is None or not shards.on:
        return
    sizes = [values.numel() for values in routing]
    flat = torch.cat([values.flatten() for values in routing])
    flat = summed(summed(flat, shards.tensor), shards.context)
    loss, counts, dropped = flat.split(sizes)
    context.outputs.routing = Routing(loss[0], counts, dropped[0])


def _select(context: C, places: Tensor) -> C:
    """The context of some tokens of the rows."""
    documents, padding = context.documents, context.padding
    return replace(
        context,
        positions=context.positions[:, places],
        documents=None if documents is None else documents[:, places],
        padding=None if padding is None else padding[:, places],
    )


def _padded(tokens: Tensor, context: Context, missing: int) -> tuple[Tensor, Context]:
    """Rows with padding, which is a document of its own."""
    ends = (0, missing)
    documents, padding = context.documents, context.padding
    if padding is None:
        padding = torch.zeros_like(tokens, dtype=torch.bool)
    return F.pad(tokens, ends), replace(
        context,
        positions=F.pad(context.positions, ends),
        documents=None if documents is None else F.pad(documents, ends, value=-1),
        padding=F.pad(padding, ends, value=True),
    )
