"""Context parallelism: attention over rows of which each rank holds a part of the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from culm.model.attend import attend, attend_from
from culm.model.context import Context, SequenceAttention
from culm.model.score_rule import Backend, ScoreRule
from culm.parallel.axis import Axis
from culm.parallel.collectives import exchanged, gathered
from culm.parallel.ring import Ring
from culm.parallel.sequence import SequenceShards
from culm.parallel.settings import ContextMethod


class GatheredKeys:
    """Keys and values of whole rows are gathered on every rank (as Llama 3, arXiv 2407.21783).

    Each rank has two pieces of a row's queries, one early and one late.
    """

    def __init__(self, axis: Axis, whole: Context) -> None:
        self.axis, self.whole = axis, whole

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule, backend: Backend) -> Tensor:
        k, v = (self._in_order(gathered(x, 1, self.axis)) for x in (k, v))
        size, ranks, rank = q.shape[1] // 2, self.axis.size, self.axis.rank
        pieces = zip((rank, 2 * ranks - 1 - rank), q.split(size, 1), strict=True)
        outs = [
            attend_from(n * size, piece, k, v, self.whole, rule, backend) for n, piece in pieces
        ]
        return torch.cat(outs, 1)

    def _in_order(self, x: Tensor) -> Tensor:
        """The pieces of all ranks in the order of the row; each has an early and a late one."""
        pieces = x.unflatten(1, (self.axis.size, 2, -1))
        return torch.cat((pieces[:, :, 0], pieces[:, :, 1].flip(1)), 1).flatten(1, 2)


class ExchangedHeads:
    """Ulysses (arXiv 2309.14509): tokens are exchanged for heads, so that each rank attends over
    whole rows with a part of the heads, by any backend.
    """

    def __init__(self, axis: Axis, whole: Context) -> None:
        self.axis, self.whole = axis, replace(whole, sequence=None)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule, backend: Backend) -> Tensor:
        own = replace(rule, slopes=self._own(rule.slopes), sink_logits=self._own(rule.sink_logits))
        q, k, v = (self._heads(x) for x in (q, k, v))
        return self._tokens(attend(q, k, v, self.whole, own, backend))

    def _own(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else self.axis.part(values, 0)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T / ranks, H, D) -> (B, T, H / ranks, D)."""
        pieces = x.unflatten(2, (self.axis.size, -1)).movedim(2, 0)
        return exchanged(pieces, self.axis).movedim(0, 1).flatten(1, 2)

    def _tokens(self, x: Tensor) -> Tensor:
        """(B, T, H / ranks, D) -> (B, T / ranks, H, D)."""
        pieces = x.unflatten(1, (self.axis.size, -1)).movedim(1, 0)
        return exchanged(pieces, self.axis).movedim(0, 2).flatten(2, 3)


METHODS: dict[ContextMethod, Callable[[Axis, Context], SequenceAttention]] = {
    "allgather": GatheredKeys,
    "ulysses": ExchangedHeads,
    "ring": Ring,
}


def attention_of(method: ContextMethod, axis: Axis) -> Callable[[Context], SequenceAttention]:
    """Makes the attention of rows of a context."""
    return lambda whole: METHODS[method](axis, whole)


class RowRanks:
    """Log-probabilities are divided over the ranks, each of which holds the states of all tokens
    (`culm.model.logprobs.RowShare`).
    """

    def __init__(self, shards: SequenceShards) -> None:
        self.shards = shards

    @property
    def ranks(self) -> int:
        return self.shards.context.size if self.shards.on else 1

    def own(self, rows: Tensor) -> Tensor:
        return self.shards.context.part(rows, 0) if self.shards.on else rows

    def gathered(self, values: Tensor) -> Tensor:
        return gathered(values, 0, self.shards.context) if self.shards.on else values
