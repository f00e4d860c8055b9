"""Batches of a prepared corpus: step n is a pure function of the seed and n.

The order of rows (`culm.data.order`) is a permutation for each epoch, or that of a curriculum.
Ranks and micro-batches only divide the rows of a step among them, so a run can resume with other
numbers of both, from any step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from culm.batch import Batch, Reads
from culm.config import SettingError
from culm.data.batch_ramp import BatchRamp, BatchSizes
from culm.data.order import Epochs, Graded, Grading, Order
from culm.data.origin import changes_since
from culm.data.pack import cut
from culm.data.prepared import Prepared
from culm.data.rows import COUNTED, Packing, Rows, overflow_of
from culm.tokenizer.tokenizer import Tokenizer


class Loader:
    """Rows of `context` tokens, `rows_per_step` of them in a step over all ranks.

    rows: rows in an epoch; sizes: in each step; micro_rows: in a micro-batch. epoch_steps: steps of
    full size that show every row once. targets: learned targets in an epoch. efficiency: share of
    positions that hold a token. truncated: documents that are learned from without their end;
    left_out: those of `documents`, or pairs, in which nothing is left to learn. dialogues: whether
    answers are learned, each with its end. fingerprint: of the order. grading: of a
    curriculum, by which rows are packed and read. ramp: steps before its end have fewer rows.

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
        grading: Grading | None = None,
        ramp: BatchRamp | None = None,
    ) -> None:
        self.sizes = BatchSizes(rows_per_step, ramp)
        self.sizes.check(ranks)
        if context < 2:
            raise SettingError(f"train.context: {context} leaves nothing to predict; at least 2")
        self._prepared, self._context = prepared, context
        self.micro_rows = micro_rows
        self._rank, self._ranks = rank, ranks
        graded = None
        if grading is not None:
            graded = grading.of(prepared, cut(prepared.offsets, context, overflow_of(prepared)))
        self._rows = Rows(prepared, context, packing, graded)
        self._kept = self._rows.kept
        self.rows = len(self._kept)
        if not self.rows:
            raise SettingError(_nothing_learned(prepared, context))
        self.epoch_steps = -(-self.rows // rows_per_step)
        self.targets, self.efficiency = self._rows.targets, self._rows.efficiency
        self.documents, self.left_out = self._rows.documents, self._rows.left_out
        self.truncated, self.group = self._rows.truncated, self._rows.group
        self.dialogues = prepared.manifest.format not in ("document", "sentences")
        self.order: Order = Epochs(self._kept, seed)
        facts: tuple[object, ...] = (prepared.fingerprint, context, rows_per_step, seed, packing)
        if graded is not None:
            hard = self._rows.difficulty(graded)
            self.order = Graded(self._kept, hard, graded.curriculum, seed)
            facts = (*facts, *graded.facts)
        if ramp is not None:
            facts = (*facts, ramp)
        self.fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()

    @property
    def tokens_per_row(self) -> float:
        """Without padding; the mean."""
        return self.efficiency * self._context

    @property
    def packing(self) -> str:
        """How full the rows are, and what of the documents is not whole, in words."""
        cuts = self._rows.cuts
        said = f"rows of {self._context} tokens, {100 * self.efficiency:.1f} % filled"
        if cuts.documents:
            said += f"; {100 * cuts.documents:.1f} % of the documents are cut"
            said += f", {100 * cuts.headless:.1f} % of the tokens are predicted without the "
            said += "beginning of their document"
        return said + (f", {100 * cuts.lost:.1f} % are left out" if cuts.lost else "")

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
            thoughts = self.gives == "thoughts"  # all of their parts are learned together
            why = "do not end within" if thoughts else "have no learned token within"
            remarks.append(
                f"{self.left_out:,} of {self.documents:,} {what} {why} {context} tokens and are "
                "left out."
            )
        if self.truncated:
            remarks.append(
                f"{self.truncated:,} documents are longer than {context} tokens and are truncated."
            )
        if (label := self._only_label()) is not None:
            remarks.append(
                f"All labels are {label:g}, so nothing shows how good and bad answers differ."
            )
        return remarks

    def _only_label(self) -> float | None:
        """The label of every answer or step, if there are labels and all are the same."""
        if "label" not in self._prepared.manifest.columns:
            return None
        values = self._prepared.column("label")
        known = values[~np.isnan(values)]
        return float(known[0]) if known.size and (known == known[0]).all() else None

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
        share = self.sizes.of(number) // self._ranks
        rows = self._rows_of(number)[self._rank * share : (self._rank + 1) * share]
        more = self.order.metrics(number)
        return [replace(one, metrics={**one.metrics, **more}) for one in self._batches(rows)]

    def batch(self, rows: Sequence[int]) -> Batch:
        """Some rows of the order, at once."""
        return self._rows.batch(rows)

    def sample(self, targets: int) -> Iterator[Batch]:
        """Rows with about this many targets, evenly spread over the corpus, to evaluate; or all.

        The first rows would do for a corpus in random order; books are long.
        """
        count = min(self.rows, max(1, round(self.rows * targets / self.targets)))
        spread = np.linspace(0, self.rows, count, endpoint=False).astype(int)
        yield from self._batches(self._kept[spread].tolist())

    def add_columns(self, columns: Mapping[str, Tensor]) -> None:
        """More of `Batch.extra`: a number for each sequence, in the order of `sample(targets)`."""
        self._rows.add_columns(columns)

    def learns(self, ids: Iterable[int]) -> bool:
        """Whether one of these tokens is learned in some row, of whatever rank."""
        wanted = torch.tensor(sorted(ids))
        batches = self._batches(self._kept.tolist())
        return any(bool(torch.isin(batch.targets, wanted).any()) for batch in batches)

    def preview(self, count: int, tokenizer: Tokenizer) -> list[list[tuple[str, bool]]]:
        """Rows of the first step as text, each in spans (text, whether it is learned)."""
        return [self.text(row, tokenizer) for row in self.some(min(count, self.rows))]

    def some(self, count: int) -> list[int]:
        """As many rows as if a step had only these; a step may have far more than can be shown."""
        return self.order.of_step(0, lambda step: step * count)

    def text(self, row: int, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
        """A row of the order in spans (text, whether it is learned)."""
        return self._rows.text(row, tokenizer)

    def _rows_of(self, step: int) -> list[int]:
        """The rows of a step, of all ranks."""
        return self.order.of_step(step, self.sizes.before)

    def _batches(self, rows: Sequence[int]) -> Iterator[Batch]:
        for at in range(0, len(rows), self.micro_rows):
            yield self._rows.batch(rows[at : at + self.micro_rows])


def _nothing_learned(prepared: Prepared, context: int) -> str:
    longer = "use a longer train.context"
    return (
        f"{prepared.manifest.source}: no token of the split {prepared.split!r} would be learned: "
        f"every target is masked, or cut off at context={context}; "
        + (longer if prepared.split == "train" else f"set data.held_out=0, or {longer}")
    )
