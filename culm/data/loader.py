"""Batches of a prepared corpus: step n is a pure function of the seed and n.

The order of rows (`culm.data.order`) is a permutation for each epoch, or that of a curriculum.
Ranks and micro-batches only divide the rows of a step among them, so a run can resume with other
numbers of both, from any step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from culm.batch import Batch, Reads
from culm.config import SettingError
from culm.data.order import Difficulties, Epochs, Graded, Grading, Order
from culm.data.origin import changes_since
from culm.data.pack import Overflow, PackedRows, bins, cut, singles, to_batch, windows
from culm.data.prepared import Prepared
from culm.tokenizer.tokenizer import Tokenizer

Packing = Literal["windows", "bins", "auto"]
COUNTED = ("pairs", "rankings")  # groups of rows, which sums are divided by
ROUND = 64  # rows that are not packed are padded to a multiple, so that few shapes occur


class Loader:
    """Rows of `context` tokens, `rows_per_step` of them in a step over all ranks.

    rows: rows in an epoch; rows_per_step: in a step; micro_rows: in a micro-batch. epoch_steps:
    steps that show every row once. targets: learned targets in an epoch. efficiency: share of
    positions that hold a token. truncated: documents that are learned from without their end;
    left_out: those of `documents`, or pairs, in which nothing is left to learn. dialogues: whether
    answers are learned, each with its end. fingerprint: of the order. prepare_step: completes the
    micro-batches of a step (`Objective.prepare_step`). grading: of a curriculum, by which rows are
    packed and read.

    A pair counts as one row here: a batch of N pairs has 2N rows, chosen and rejected in turn. So
    does a ranking, all of whose answers are in one batch. group: sequences of the largest row.
    """

    def __init__(
        self,
        prepared: Prepared,
        context: int,
        rows_per_step: int,
        micro_rows: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        packing: Packing = "auto",
        prepare_step: Callable[[list[Batch]], list[Batch]] = list,
        grading: Grading | None = None,
    ) -> None:
        if rows_per_step % ranks:
            raise SettingError(
                f"train.batch_size: {rows_per_step} does not divide over {ranks} ranks"
            )
        if context < 2:
            raise SettingError(f"train.context: {context} leaves nothing to predict; at least 2")
        self._prepared, self._context = prepared, context
        self.rows_per_step, self.micro_rows = rows_per_step, micro_rows
        self._rank, self._ranks, self._share = rank, ranks, rows_per_step // ranks
        self._prepare_step = prepare_step
        self._pad, self._single = prepared.manifest.end_of_text, _is_single(prepared)
        self._columns = {name: prepared.column(name) for name in prepared.manifest.columns}
        self._per = prepared.manifest.per
        graded = None
        if grading is not None:
            graded = grading.of(prepared, cut(prepared.offsets, context, _overflow(prepared)))
        self._packed = _pack(prepared, context, packing, graded)
        learned_in = prepared.learned_positions() if prepared.masked else None
        targets = self._packed.targets(learned_in)
        rows = np.add.reduceat(targets, self._packed.first[:-1])
        self._groups = self._group_starts(len(rows))
        self.group = int(np.diff(self._groups).max())
        learned = np.add.reduceat(rows, self._groups[:-1])
        self._kept = np.flatnonzero(np.minimum.reduceat(rows, self._groups[:-1]) > 0)
        self.rows = len(self._kept)
        if not self.rows:
            longer = "use a longer train.context"
            raise SettingError(
                f"{prepared.manifest.source}: no token of the split {prepared.split!r} would be "
                f"learned: every target is masked, or cut off at context={context}; "
                + (longer if prepared.split == "train" else f"set data.held_out=0, or {longer}")
            )
        self.epoch_steps = -(-self.rows // rows_per_step)
        self.targets = int(learned[self._kept].sum())
        self.efficiency = self._packed.efficiency(context)
        self.dialogues = prepared.manifest.format != "document"
        self.documents, self.left_out = len(learned), len(learned) - self.rows
        if self.dialogues and len(targets) == len(prepared.offsets) - 1 and not self._single:
            self.documents, self.left_out = len(targets), int((targets == 0).sum())
        short = ~np.isin(self._packed.ends, prepared.offsets) & (targets > 0)
        self.truncated = int(short.sum()) if self._packed.truncated else 0
        self.order: Order = Epochs(self._kept, seed)
        facts: tuple[object, ...] = (prepared.fingerprint, context, rows_per_step, seed, packing)
        if graded is not None:
            hard = graded.of_rows(self._packed, self._groups)[self._kept]
            self.order = Graded(self._kept, hard, graded.curriculum, rows_per_step, seed)
            facts = (*facts, *graded.facts)
        self.fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()

    @property
    def remarks(self) -> list[str]:
        """What a person should know about the corpus and its rows, a sentence each."""
        manifest, context = self._prepared.manifest, self._context
        remarks = list(manifest.remarks)
        if changes := changes_since(manifest.origin):
            others = f", and {len(changes) - 1:,} other files changed" if changes[1:] else ""
            remarks.append(
                f"{self._prepared.folder} was prepared from other text: {changes[0]}{others}."
            )
        what = self.gives if self.gives in COUNTED else "documents"
        if self.left_out:
            remarks.append(
                f"{self.left_out:,} of {self.documents:,} {what} have no learned token "
                f"within {context} tokens and are left out."
            )
        if self.truncated:
            remarks.append(
                f"{self.truncated:,} documents are longer than {context} tokens and are truncated."
            )
        return remarks

    @property
    def gives(self) -> Reads:
        """What an objective can read in these rows."""
        return self._prepared.manifest.gives

    def state(self, steps: int) -> dict[str, Tensor]:
        """Nothing: a step is a function of its number."""
        return {}

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of step `number` (from 0) for this rank."""
        start = number * self.rows_per_step + self._rank * self._share
        rows = [self.order.row(n) for n in range(start, start + self._share)]
        batches, more = self._prepare_step(list(self._batches(rows))), self.order.metrics(number)
        return [replace(one, metrics={**one.metrics, **more}) for one in batches]

    def sample(self, targets: int) -> Iterator[Batch]:
        """Rows that hold about so many targets, evenly spread over the corpus, or all: to evaluate.

        The first rows would do for a corpus in random order; books are long.
        """
        count = min(self.rows, max(1, round(self.rows * targets / self.targets)))
        spread = np.linspace(0, self.rows, count, endpoint=False).astype(int)
        yield from self._batches(self._kept[spread].tolist())

    def add_columns(self, columns: Mapping[str, Tensor]) -> None:
        """More of `Batch.extra`: a number for each sequence, in the order of `sample(targets)`."""
        kept = [member for row in self._kept.tolist() for member in self._members(row)]
        for name, values in columns.items():
            column = np.full(self._groups[-1], np.nan, dtype=np.float32)
            column[kept] = values.numpy()
            self._columns[name] = column

    def learns(self, ids: Iterable[int]) -> bool:
        """Whether one of these tokens is learned in some row, of whatever rank."""
        wanted = torch.tensor(sorted(ids))
        batches = self._batches(self._kept.tolist())
        return any(bool(torch.isin(batch.targets, wanted).any()) for batch in batches)

    def preview(self, count: int, tokenizer: Tokenizer) -> list[list[tuple[str, bool]]]:
        """The first rows as text, each in spans (text, whether it is learned)."""
        rows = [self.order.row(index) for index in range(min(count, self.rows))]
        return [
            _spans([self._prepared.read(*segment) for segment in self._segments(row)], tokenizer)
            for row in rows
        ]

    def _group_starts(self, rows: int) -> np.ndarray:
        """(groups + 1,) int64, the first row of each group, and the end of the last."""
        if group := self._prepared.manifest.group:
            return np.arange(0, rows + 1, group)
        return np.append(np.flatnonzero(self._columns["place"] == 0), rows)

    def _members(self, row: int) -> range:
        """What belongs together in a row of the loader: packed rows."""
        return range(self._groups[row], self._groups[row + 1])

    def _segments(self, row: int) -> list[tuple[int, int]]:
        return [segment for member in self._members(row) for segment in self._packed[member]]

    def _batches(self, rows: Sequence[int]) -> Iterator[Batch]:
        for at in range(0, len(rows), self.micro_rows):
            yield self._batch(rows[at : at + self.micro_rows])

    def _batch(self, rows: Sequence[int]) -> Batch:
        read, pad = self._prepared.read, self._pad
        if not self._single:
            packed = [self._packed[row] for row in rows]
            return self._checked(to_batch(packed, read, self._context, pad))
        ones = [[segment] for row in rows for segment in self._segments(row)]
        longest = max(end - start for [(start, end)] in ones)
        length = min(self._context, -(-longest // ROUND) * ROUND)
        batch = self._checked(to_batch(ones, read, length, pad, packed=False))
        more: dict[str, float] = {self.gives: len(rows)} if self.gives in COUNTED else {}
        extra = {
            name: self._cells(values, rows, ones, length) for name, values in self._columns.items()
        }
        return replace(batch, counts={**batch.counts, **more}, extra=extra)

    def _cells(
        self,
        values: np.ndarray,
        rows: Sequence[int],
        segments: Sequence[Sequence[tuple[int, int]]],
        length: int,
    ) -> Tensor:
        """(B,) or (B, length), a column of some rows with their segments; nan behind their end."""
        if self._per == "row":
            documents = [member for row in rows for member in self._members(row)]
            return torch.from_numpy(values[documents])
        cells = torch.full((len(segments), length), torch.nan)
        for cell, [(start, end)] in zip(cells, segments, strict=True):
            cell[: end - start] = torch.from_numpy(values[start:end])
        return cells

    def _checked(self, batch: Batch) -> Batch:
        """A flipped bit in a shard would be an index outside the embedding."""
        greatest, known = int(batch.tokens.max()), self._prepared.manifest.vocabulary
        if greatest >= known:
            raise SettingError(
                f"{self._prepared.folder}: holds token {greatest}, beyond its vocabulary of "
                f"{known}; "
                "it is damaged: delete its folder to prepare it again"
            )
        return batch


def _is_single(prepared: Prepared) -> bool:
    """Whether a row holds one document: a pair's answers, or what carries numbers of its own."""
    return prepared.manifest.group != 1 or bool(prepared.manifest.columns)


def _overflow(prepared: Prepared) -> Overflow:
    return "split" if prepared.manifest.format == "document" else "truncate"


def _pack(
    prepared: Prepared, context: int, packing: Packing, graded: Difficulties | None
) -> PackedRows:
    if _is_single(prepared):
        return singles(prepared.offsets, context)
    overflow = _overflow(prepared)
    if packing == "windows" or (packing == "auto" and overflow == "split" and graded is None):
        return windows(prepared.offsets, context)
    return bins(prepared.offsets, context, overflow, None if graded is None else graded.values)


def _spans(
    segments: list[tuple[np.ndarray, np.ndarray | None]], tokenizer: Tokenizer
) -> list[tuple[str, bool]]:
    """Runs of equal mask, decoded with the special tokens visible."""
    spans = []
    for ids, mask in segments:
        learned = np.ones(len(ids), dtype=bool) if mask is None else mask
        cuts = [0, *(np.flatnonzero(learned[1:] != learned[:-1]) + 1), len(ids)]
        for start, end in pairwise(cuts):
            text = tokenizer.decode(ids[start:end].tolist(), specials=True)
            spans.append((text, bool(learned[start])))
    return spans
