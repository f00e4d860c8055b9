"""The rows of a prepared corpus, each by its number, and batches of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from culm.batch import PACKED, Batch
from culm.config import SettingError
from culm.data.order import Difficulties
from culm.data.pack import Overflow, PackedRows, best_fit, neighbours, singles, wrapped
from culm.data.prepared import Prepared
from culm.data.spans import spans_of
from culm.data.tensors import to_batch
from culm.tokenizer.tokenizer import Tokenizer

Packing = Literal["wrapped", "best_fit", "auto"]
COUNTED = ("pairs", "rankings")  # groups of rows, which sums are divided by
ROUND = 64  # rows that are not packed are padded to a multiple, so that few shapes occur


class Rows:
    """Rows of `context` tokens. What belongs together is one row here: a pair, or all answers of a
    ranking; its batch has a row for each answer.

    kept: (N,) int64, numbers of the rows in which something is learned. targets: learned targets in
    these. efficiency: share of positions that hold a token. cuts: what is not whole.
    truncated: documents that are learned from without their end; left_out: those of `documents`, or
    pairs, in which nothing is left to learn. group: sequences of the largest row.
    """

    def __init__(
        self, prepared: Prepared, context: int, packing: Packing, graded: Difficulties | None
    ) -> None:
        """graded: of a curriculum, by which documents are packed."""
        self._prepared, self._context = prepared, context
        self._single = _is_single(prepared)
        self._columns = {name: prepared.column(name) for name in prepared.manifest.columns}
        self._packed = _pack(prepared, context, packing, graded)
        targets = self._packed.targets(prepared.learned_positions() if prepared.masked else None)
        whole = np.isin(self._packed.ends, prepared.offsets)
        if prepared.manifest.gives == "thoughts":
            targets = np.where(whole, targets, 0)  # the last part would be taken for the answer
        rows = np.add.reduceat(targets, self._packed.first[:-1])
        self._groups = self._group_starts(len(rows))
        self.group = int(np.diff(self._groups).max())
        learned = np.add.reduceat(rows, self._groups[:-1])
        self.kept = np.flatnonzero(np.minimum.reduceat(rows, self._groups[:-1]) > 0)
        self.targets = int(learned[self.kept].sum())
        self.efficiency = self._packed.efficiency(context)
        self.cuts = self._packed.cuts(prepared.offsets)
        self.documents, self.left_out = len(learned), len(learned) - len(self.kept)
        apiece = len(targets) == len(prepared.offsets) - 1  # no document is cut into several
        if prepared.manifest.format != "document" and apiece and not self._single:
            self.documents, self.left_out = len(targets), int((targets == 0).sum())
        self.truncated = int((~whole & (targets > 0)).sum()) if self._packed.truncated else 0

    def difficulty(self, graded: Difficulties) -> np.ndarray:
        """(N,) fp64, of the rows that are kept."""
        return graded.of_rows(self._packed, self._groups)[self.kept]

    def batch(self, rows: Sequence[int]) -> Batch:
        """The rows of these numbers."""
        read, pad = self._prepared.read, self._prepared.manifest.end_of_text
        if not self._single:
            packed = self._packed.some(rows)
            batch = self._checked(to_batch(packed, read, self._context, pad))
            return replace(batch, counts={**batch.counts, **self._sentences(packed)})
        members = [member for row in rows for member in self._members(row)]
        ones = self._packed.some(members)
        longest = int((ones.ends - ones.starts).max())
        length = min(self._context, -(-longest // ROUND) * ROUND)
        batch = self._checked(to_batch(ones, read, length, pad, packed=False))
        gives = self._prepared.manifest.gives
        more: dict[str, float] = {gives: len(rows)} if gives in COUNTED else {}
        extra = {
            name: self._cells(values, members, ones, length)
            for name, values in self._columns.items()
        }
        return replace(batch, counts={**batch.counts, **more}, extra=extra)

    def add_columns(self, columns: Mapping[str, Tensor]) -> None:
        """More of `Batch.extra`: a number for each sequence, in the order of `sample(targets)`."""
        kept = [member for row in self.kept.tolist() for member in self._members(row)]
        for name, values in columns.items():
            column = np.full(self._groups[-1], np.nan, dtype=np.float32)
            column[kept] = values.numpy()
            self._columns[name] = column

    def text(self, row: int, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
        """A row in spans (text, whether it is learned)."""
        return spans_of([self._prepared.read(*one) for one in self._segments(row)], tokenizer)

    def _group_starts(self, rows: int) -> np.ndarray:
        """(groups + 1,) int64, the first row of each group, and the end of the last."""
        if group := self._prepared.manifest.group or not self._single:
            return np.arange(0, rows + 1, group)
        return np.append(np.flatnonzero(self._columns["place"] == 0), rows)

    def _sentences(self, packed: PackedRows) -> dict[str, float]:
        """Their counts in a batch, where documents are sentences."""
        if self._prepared.manifest.gives != "sentences":
            return {}
        count = len(packed.starts)
        return {"sentences": float(count), "successors": float(count - len(packed))}

    def _members(self, row: int) -> range:
        """Packed rows that belong together in a row."""
        return range(self._groups[row], self._groups[row + 1])

    def _segments(self, row: int) -> list[tuple[int, int]]:
        return [segment for member in self._members(row) for segment in self._packed[member]]

    def _cells(
        self, values: np.ndarray, members: Sequence[int], ones: PackedRows, length: int
    ) -> Tensor:
        """(B,) or (B, length), a column of some packed rows; nan behind their end."""
        if self._prepared.manifest.per == "row":
            return torch.from_numpy(values[members])
        cells = torch.full((len(ones), length), torch.nan)
        for cell, start, end in zip(cells, ones.starts, ones.ends, strict=True):
            cell[: end - start] = torch.from_numpy(values[start:end])
        return cells

    def _checked(self, batch: Batch) -> Batch:
        """A flipped bit in a shard would be an index outside the embedding."""
        greatest, known = int(batch.tokens.max()), self._prepared.manifest.vocabulary
        if greatest >= known:
            raise SettingError(
                f"{self._prepared.folder}: holds token {greatest}, beyond its vocabulary of "
                f"{known}; it is damaged: delete its folder to prepare it again"
            )
        return batch


def _is_single(prepared: Prepared) -> bool:
    """Whether a row holds one document: a pair's answers, or what carries numbers of its own."""
    manifest = prepared.manifest
    if manifest.gives == "thoughts":
        return True
    return manifest.gives not in PACKED and (manifest.group != 1 or bool(manifest.columns))


def overflow_of(prepared: Prepared) -> Overflow:
    """What becomes of a document that is longer than a row."""
    return "split" if prepared.manifest.format == "document" else "truncate"


def _pack(
    prepared: Prepared, context: int, packing: Packing, graded: Difficulties | None
) -> PackedRows:
    if _is_single(prepared) or prepared.manifest.gives == "sentences":
        if packing != "auto":
            raise SettingError(
                f"data.packing: {prepared.manifest.gives} are not packed, since each has rows of "
                "its own; leave it out"
            )
        if prepared.manifest.gives == "sentences":
            if graded is not None:
                raise SettingError(
                    "data.curriculum: sentences stay in the order of their text; leave it out"
                )
            return neighbours(prepared.offsets, context, prepared.column("place") == 0)
        return singles(prepared.offsets, context)
    overflow = overflow_of(prepared)
    if packing == "wrapped" or (packing == "auto" and overflow == "split" and graded is None):
        return wrapped(prepared.offsets, context)
    return best_fit(prepared.offsets, context, overflow, None if graded is None else graded.values)
