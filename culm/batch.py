"""What the loop carries: a batch with its counts, and a loss as sums with what divides them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# What an objective learns from, and a corpus gives: texts and dialogues; texts in sentences, each a
# document of its row; a chosen and a rejected answer, in rows 2i and 2i + 1; several answers to a
# question, each with a score; single answers, each with a label; answers in steps, each with a
# label; questions with steps and answer, of which the ends are marked; answers of the model itself.
Reads = Literal[
    "documents", "sentences", "pairs", "rankings", "labels", "steps", "thoughts", "rollouts"
]
PACKED: tuple[Reads, ...] = ("documents", "sentences")  # of which a row may hold several

IGNORED = -100  # a target that is not learned, as in torch.nn.functional.cross_entropy


@dataclass(frozen=True)
class Batch:
    """Rows of tokens with the targets that are learned.

    tokens, targets: (B, T) int64; `targets[b, t]` follows `tokens[b, t]`, or is IGNORED.
    positions: (B, T) int64, restarting at 0 with each document.
    documents: (B, T) int32, the document of each token within its row; None: one document a row.
    lengths: (B,) int64, tokens of each row; padding follows. None: no padding.
    counts: what sums over this batch are divided by: `tokens` that are read, padding excluded,
        learned `targets`, `rows` with some of them (`counts_of`), and `pairs`, `rankings`, or
        `sentences` and how many of them are `successors` of another one.
    extra: columns of one objective, each with B as its first axis.
    metrics: numbers known before the forward, such as the mean reward; they go to the log.
    temperature: the policy that sampled the targets divided its logits by it. vocabulary: it chose
        among the ids below this; None: among all.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    documents: Tensor | None = None
    lengths: Tensor | None = None
    counts: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    vocabulary: int | None = None

    @property
    def padding(self) -> Tensor | None:
        """(B, T) bool, True where a row is padding."""
        if self.lengths is None:
            return None
        return (
            torch.arange(self.tokens.shape[1], device=self.tokens.device) >= self.lengths[:, None]
        )

    @property
    def last(self) -> Tensor:
        """(B,) int64, the index of each row's last real token."""
        if self.lengths is None:
            size, end = self.tokens.shape
            return torch.full((size,), end - 1, device=self.tokens.device)
        return self.lengths - 1

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            targets=self.targets.to(device),
            positions=self.positions.to(device),
            documents=None if self.documents is None else self.documents.to(device),
            lengths=None if self.lengths is None else self.lengths.to(device),
            extra={name: value.to(device) for name, value in self.extra.items()},
        )

    def select(self, rows: Tensor, multiple: int = 1) -> Batch:
        """Some rows of an unpacked batch, without the padding that none of them needs.

        rows: (N,) int64. The new length is a multiple of `multiple`, as far as there is padding.
        """
        assert self.lengths is not None
        assert self.documents is None
        lengths = self.lengths[rows]
        length = min(-(-int(lengths.max()) // multiple) * multiple, self.tokens.shape[1])
        size = self.tokens.shape

        def cut(column: Tensor) -> Tensor:
            return column[rows, :length] if column.shape[:2] == size else column[rows]

        targets = cut(self.targets)
        return replace(
            self,
            tokens=cut(self.tokens),
            targets=targets,
            positions=cut(self.positions),
            lengths=lengths,
            counts=counts_of(targets, lengths),
            extra={name: cut(column) for name, column in self.extra.items()},
        )


def counts_of(targets: Tensor, lengths: Tensor | None = None) -> dict[str, float]:
    """`Batch.counts` of rows that are no pairs."""
    learned = (targets != IGNORED).sum(1)
    return {
        "tokens": float(targets.numel() if lengths is None else lengths.sum()),
        "targets": float(learned.sum()),
        "rows": float(learned.count_nonzero()),
    }


class Term(NamedTuple):
    """A sum over a batch, and the name of the count in `Batch.counts` that divides it.

    total: () tensor. weight: of its mean in the loss; metrics and reports are not weighted.
    """

    total: Tensor
    per: str
    weight: float = 1.0


@dataclass(frozen=True)
class Loss:
    """Sums over the rows of a batch.

    The loop divides each by its count of the whole step, once, over micro-batches and ranks: a mean
    of means would weigh short batches more.

    terms: their weighted means are added and minimised. metrics: are only reported.
    statistics: (n,) each, added over the step, for `Objective.before_update`.
    """

    terms: Mapping[str, Term]
    metrics: Mapping[str, Term] = field(default_factory=dict)
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if twice := self.terms.keys() & self.metrics.keys():
            raise ValueError(f"{min(twice)}: a term and a metric have the same name")

    def mean(self, counts: Mapping[str, float]) -> Tensor:
        """What a step of these counts minimises: () tensor."""
        means = [t.weight * t.total / divisor(counts, t.per) for t in self.terms.values()]
        return torch.stack(means).sum()


def divisor(counts: Mapping[str, float], per: str) -> float:
    """The count, or 1 for an empty sum."""
    return counts[per] or 1.0


class Sums:
    """The losses of a step on this rank, added up; read from the device once, at the end."""

    def __init__(self) -> None:
        self._totals: dict[str, list[Tensor]] = {}
        self.terms: dict[str, Term] = {}
        self.metrics: dict[str, Term] = {}
        self.statistics: dict[str, Tensor] = {}

    def add(self, loss: Loss) -> None:
        """Add the loss of one micro-batch."""
        self.terms |= loss.terms
        self.metrics |= loss.metrics
        for name, term in {**loss.terms, **loss.metrics}.items():
            self._totals.setdefault(name, []).append(term.total.detach())
        for name, value in loss.statistics.items():
            known = self.statistics.get(name)
            self.statistics[name] = value if known is None else known + value

    def totals(self) -> dict[str, float]:
        """The sum of each term and metric, added up in double precision."""
        parts = [part.float() for values in self._totals.values() for part in values]
        numbers = iter(torch.stack(parts).tolist() if parts else [])
        return {name: sum(next(numbers) for _ in values) for name, values in self._totals.items()}
