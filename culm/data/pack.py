"""Documents into rows of equal length.

A row is a list of segments (start, end) of the token stream. Each segment lies in one document and
is a document to the model: its positions start at 0, it sees nothing outside itself, and its last
token has no target, so that no document ever predicts the next.

    wrapped   documents end to end, cut every T - 1 tokens; rows overlap in one token, so that each
              token but the first of its document is a target exactly once
    best fit  documents of at most T tokens whole, longer ones in parts of T; best fit decreasing
              (arXiv 2404.10830); with a curriculum, those of about the same difficulty
    singles   one document a row
    neighbours  documents that follow each other, such as the sentences of a text
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from culm.data.difficulty import Examples

GRADES = 100  # parts of a corpus by difficulty at most, each packed separately
ROWS = 20  # that the tokens of a part fill, at least

Segment = tuple[int, int]


@dataclass(frozen=True)
class Cuts:
    """Shares of what packing cuts. documents: in several rows, or without their end. headless: of
    all tokens, those predicted without the beginning of their document. lost: those in no row.
    """

    documents: float
    headless: float
    lost: float


@dataclass(frozen=True)
class PackedRows:
    """starts, ends: (segments,) int64, in order of rows; first: (rows + 1,), segments of each row.

    truncated: documents that were cut at the end, by `lost` tokens in all.
    """

    starts: np.ndarray
    ends: np.ndarray
    first: np.ndarray
    truncated: int = 0
    lost: int = 0

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, row: int) -> list[Segment]:
        segments = slice(self.first[row], self.first[row + 1])
        return list(zip(self.starts[segments].tolist(), self.ends[segments].tolist(), strict=True))

    @staticmethod
    def of(rows: Sequence[Sequence[Segment]]) -> PackedRows:
        """Rows that are given as lists."""
        starts, ends = np.array([segment for row in rows for segment in row], dtype=np.int64).T
        return PackedRows(starts, ends, np.cumsum([0, *map(len, rows)]))

    def some(self, rows: Sequence[int]) -> PackedRows:
        """The rows of these numbers, in this order."""
        firsts = self.first[np.asarray(rows)]
        counts = self.first[np.asarray(rows) + 1] - firsts
        first = np.concatenate([[0], counts.cumsum()])
        chosen = np.arange(first[-1]) + np.repeat(firsts - first[:-1], counts)
        return PackedRows(self.starts[chosen], self.ends[chosen], first)

    def efficiency(self, context: int) -> float:
        """The share of positions that hold a token."""
        return float((self.ends - self.starts).sum()) / max(1, len(self) * context)

    def cuts(self, offsets: np.ndarray) -> Cuts:
        """What of the documents of a corpus is not whole. offsets: (documents + 1,)."""
        documents = np.searchsorted(offsets, self.starts, side="right") - 1
        first, end = offsets[documents], offsets[documents + 1]
        whole = np.unique(documents[(self.starts == first) & (self.ends == end)])
        read = np.zeros(len(offsets) - 1, dtype=np.int64)  # tokens of each document, to the last
        np.maximum.at(read, documents, self.ends - first)
        later = (self.ends - self.starts - 1)[self.starts > first]
        tokens = max(1, int(offsets[-1]))
        return Cuts(
            documents=1 - len(whole) / max(1, len(read)),
            headless=float(later.sum()) / tokens,
            lost=1 - float(read.sum()) / tokens,
        )

    def targets(self, learned: Iterable[np.ndarray] | None) -> np.ndarray:
        """(segments,) how many targets of each segment are learned. learned: sorted numbers of the
        tokens that are, in parts; None: all.
        """
        firsts = self.starts + 1  # the first token of a segment is no target
        if learned is None:
            return self.ends - firsts
        counts = np.zeros_like(firsts)
        for part in learned:
            counts += np.searchsorted(part, self.ends) - np.searchsorted(part, firsts)
        return counts


def wrapped(offsets: np.ndarray, context: int) -> PackedRows:
    """The stream cut into rows of `context`; offsets: (documents + 1,)."""
    stride, total = context - 1, int(offsets[-1])
    cuts = np.arange(0, max(1, total - 1), stride, dtype=np.int64)
    inner = offsets[1:-1]
    rows = np.concatenate([np.arange(len(cuts)), (inner - 1) // stride])
    starts = np.concatenate([cuts, inner])
    order = np.lexsort((starts, rows))
    rows, starts = rows[order], starts[order]
    row_ends = np.minimum(rows * stride + context, total)
    ends = np.append(starts[1:], total)
    ends = np.where(np.append(rows[1:] != rows[:-1], True), row_ends, ends)
    return PackedRows(starts, ends, np.searchsorted(rows, np.arange(len(cuts) + 1)))


Overflow = Literal["truncate", "split"]


def cut(offsets: np.ndarray, context: int, overflow: Overflow) -> Examples:
    """Documents, those longer than `context` truncated or split."""
    starts, ends = offsets[:-1], offsets[1:]
    documents = np.arange(len(starts))
    if overflow == "truncate":
        return Examples(starts, np.minimum(ends, starts + context), documents)
    parts = -(-(ends - starts) // context)  # of each document
    documents = np.repeat(documents, parts)
    part = np.arange(len(documents)) - np.repeat(parts.cumsum() - parts, parts)
    starts = starts[documents] + part * context
    return Examples(starts, np.minimum(starts + context, ends[documents]), documents)


def best_fit(
    offsets: np.ndarray,
    context: int,
    overflow: Overflow = "truncate",
    difficulty: np.ndarray | None = None,
) -> PackedRows:
    """Documents packed without cuts; those longer than `context` are truncated or split.

    difficulty: of each example that `cut` gives; those of a row are then about equally hard.
    """
    starts, ends = offsets[:-1], offsets[1:]
    long = ends - starts > context
    lost = int((ends - starts - context)[long].sum()) if overflow == "truncate" else 0
    examples = cut(offsets, context, overflow)
    starts, ends = examples.starts, examples.ends
    if difficulty is None:
        packed = fit(ends - starts, context)
    else:
        packed = graded_fit(ends - starts, difficulty, context)
    order = np.array([document for row in packed for document in row], dtype=np.int64)
    first = np.cumsum([0, *(len(row) for row in packed)])
    truncated = int(long.sum()) if overflow == "truncate" else 0
    return PackedRows(starts[order], ends[order], first, truncated, lost)


def singles(offsets: np.ndarray, context: int) -> PackedRows:
    """One document per row; those longer than `context` are truncated."""
    starts, ends = offsets[:-1], np.minimum(offsets[1:], offsets[:-1] + context)
    lost = offsets[1:] - ends
    return PackedRows(
        starts, ends, np.arange(len(starts) + 1), int((lost > 0).sum()), int(lost.sum())
    )


def neighbours(offsets: np.ndarray, context: int, first: np.ndarray) -> PackedRows:
    """Documents in their order, a new row where `first` says so or the next one does not fit; those
    longer than `context` are truncated.

    first: (documents,) bool.
    """
    one = singles(offsets, context)
    rows, used = [0], 0
    for index, (length, new) in enumerate(
        zip((one.ends - one.starts).tolist(), first.tolist(), strict=True)
    ):
        if index and (new or used + length > context):
            rows.append(index)
            used = 0
        used += length
    return replace(one, first=np.array([*rows, len(one.starts)]))


def fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Best-fit-decreasing: bins of indices, no bin above `capacity`.

    The longest goes first, each into the fullest bin that still has room. Which amounts of room
    exist is a set of bits, so the smallest that suffices is found by one shift.
    """
    packed: list[list[int]] = []
    room: dict[int, list[int]] = {}  # amount of room -> bins that have it
    amounts = 0
    order = np.argsort(-lengths, kind="stable")
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = amounts >> length
        if fitting:
            amount = length + (fitting & -fitting).bit_length() - 1
            bin = room[amount].pop()
            if not room[amount]:
                amounts ^= 1 << amount
        else:
            amount, bin = capacity, len(packed)
            packed.append([])
        packed[bin].append(index)
        room.setdefault(amount - length, []).append(bin)
        amounts |= 1 << (amount - length)
    return packed


def graded_fit(lengths: np.ndarray, difficulty: np.ndarray, capacity: int) -> list[list[int]]:
    """`fit` in up to GRADES parts of the examples sorted by difficulty, so that no row has
    both easy and hard ones. All parts have about equally many tokens: enough for ROWS rows, since
    the last row of each may stay nearly empty.
    """
    order = np.argsort(difficulty, kind="stable")
    read = lengths[order].cumsum()
    grades = int(min(GRADES, max(1, read[-1] // (capacity * ROWS))))
    cuts = np.searchsorted(read, np.arange(1, grades) * read[-1] / grades)
    return [
        [int(part[index]) for index in row]
        for part in np.split(order, cuts)
        for row in fit(lengths[part], capacity)
    ]
