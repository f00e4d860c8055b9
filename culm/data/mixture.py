"""Batches of several corpora in one run.

    step n --> rows of each corpus (`culm.data.apportion`), each read in its own order
           --> the places of the step, in random order --> ranks --> micro-batches

All of it is a function of the seed and n. A step has the same rows on any number of ranks and with
any micro-batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from culm.batch import Batch
from culm.data.apportion import Apportionment
from culm.data.batch_ramp import BatchRamp, BatchSizes
from culm.data.loader import Loader
from culm.seed import keyed_permutation

ORDER = 1 << 32  # more than a run has epochs or steps: other random numbers than theirs


@dataclass(frozen=True)
class Read:
    """What a run reads of one corpus. rows: in all its steps. share: of all rows."""

    rows: int
    share: float


class Mixture:
    """Rows of several corpora, `rows_per_step` in a step over all ranks, fewer in one of a ramp.

    corpora: their own rows per step, ranks and micro-batches are not used. weights: (steps,
    corpora), as `Apportionment` takes them.
    """

    def __init__(
        self,
        corpora: Sequence[Loader],
        weights: np.ndarray,
        rows_per_step: int,
        micro_rows: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        ramp: BatchRamp | None = None,
    ) -> None:
        self.sizes = BatchSizes(rows_per_step, ramp)
        self.sizes.check(ranks)
        self.corpora, self._micro_rows = corpora, micro_rows
        self.apportionment = Apportionment(weights, self.sizes)
        self._seed, self._rank, self._ranks = seed, rank, ranks
        facts = ([one.fingerprint for one in corpora], weights.shape, weights.tobytes())
        self.fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()

    @property
    def remarks(self) -> list[str]:
        """Of all corpora, a sentence each."""
        return list(dict.fromkeys(remark for one in self.corpora for remark in one.remarks))

    def reads(self, steps: int) -> list[Read]:
        """What the first steps read of each corpus."""
        total = max(1, self.sizes.before(steps))
        return [Read(rows, rows / total) for rows in self.apportionment.before(steps)]

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of step `number` (from 0) for this rank."""
        share = self.sizes.of(number) // self._ranks
        places = self.places(number)[self._rank * share : (self._rank + 1) * share]
        batches = [
            self._batch(places[at : at + self._micro_rows])
            for at in range(0, share, self._micro_rows)
        ]
        metrics = self._metrics(number)
        return [replace(one, metrics={**one.metrics, **metrics}) for one in batches]

    def places(self, number: int) -> list[tuple[int, int]]:
        """The corpus and the row of each place of a step, of all ranks."""
        rows = [
            (corpus, row)
            for corpus, one in enumerate(self.corpora)
            for row in one.order.of_step(number, partial(self._before, corpus))
        ]
        order = keyed_permutation(np.arange(len(rows)), self._seed, ORDER + number)
        return [rows[place] for place in order]

    def state(self, steps: int) -> dict[str, Tensor]:
        """Nothing: a step is a function of its number."""
        return {}

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""

    def preview(self, count: int) -> Iterator[tuple[Loader, int]]:
        """Rows that a first step may have, of one corpus after another."""
        each = [one.some(min(count, one.rows)) for one in self.corpora]
        rows = (
            (one, some[place])
            for place in range(count)
            for one, some in zip(self.corpora, each, strict=True)
            if place < len(some)
        )
        yield from islice(rows, count)

    def _before(self, corpus: int, step: int) -> int:
        return self.apportionment.before(step)[corpus]

    def _batch(self, places: Sequence[tuple[int, int]]) -> Batch:
        """The rows of these places, those of one corpus after another."""
        parts = []
        for corpus, one in enumerate(self.corpora):
            if rows := [row for number, row in places if number == corpus]:
                parts.append(one.batch(rows))
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _metrics(self, number: int) -> dict[str, float]:
        """Of the orders, and where weights change, the share of each corpus."""
        found: dict[str, float] = {}
        for one in self.corpora:
            found |= one.order.metrics(number)
        if self.apportionment.changes:
            shares = self.apportionment.shares(number)
            found |= {f"share_{place}": share for place, share in enumerate(shares)}
        return found


def _joined(parts: Sequence[Batch]) -> Batch:
    """One batch of packed rows of equal length."""
    documents = [one.documents for one in parts]
    lengths = [one.lengths for one in parts]
    assert not any(one.extra for one in parts)
    assert all(one is not None for one in [*documents, *lengths])
    return Batch(
        tokens=torch.cat([one.tokens for one in parts]),
        targets=torch.cat([one.targets for one in parts]),
        positions=torch.cat([one.positions for one in parts]),
        documents=torch.cat([one for one in documents if one is not None]),
        lengths=torch.cat([one for one in lengths if one is not None]),
        counts={name: sum(one.counts[name] for one in parts) for name in parts[0].counts},
    )
