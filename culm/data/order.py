"""The order in which rows are read: endless, and each place a function of the seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from culm.config import SettingError
from culm.data.curriculum import Curriculum
from culm.data.difficulty import Examples
from culm.data.pack import PackedRows
from culm.data.prepared import Prepared
from culm.seed import keyed_draw, keyed_permutation

Measure = Callable[[Prepared, Examples], np.ndarray]  # (N,), larger is harder
Before = Callable[[int], int]  # how many rows come before a step


@dataclass(frozen=True)
class Difficulties:
    """Of all examples of a corpus, in their order. values: (N,) fp64."""

    curriculum: Curriculum
    examples: Examples
    values: np.ndarray

    @property
    def facts(self) -> tuple[str, ...]:
        """What the order depends on, besides the corpus."""
        return repr(self.curriculum), hashlib.sha256(self.values.tobytes()).hexdigest()

    def of_rows(self, packed: PackedRows, groups: np.ndarray) -> np.ndarray:
        """(groups,) the mean over the examples of all rows of a group, such as a pair.

        groups: (groups + 1,), the first row of each, and the end of the last.
        """
        places = np.searchsorted(self.examples.starts, packed.starts)
        sums = np.add.reduceat(self.values[places], packed.first[:-1])
        counts = np.diff(packed.first)
        return np.add.reduceat(sums, groups[:-1]) / np.add.reduceat(counts, groups[:-1])


@dataclass(frozen=True)
class Grading:
    """A curriculum, and what measures its difficulty."""

    curriculum: Curriculum
    measure: Measure

    def of(self, prepared: Prepared, examples: Examples) -> Difficulties:
        """The difficulty of each example of a corpus.

        Raises:
            SettingError: one is not finite, as the loss of a model that diverged.
        """
        values = np.asarray(self.measure(prepared, examples), dtype=np.float64)
        if lost := int((~np.isfinite(values)).sum()):
            raise SettingError(
                f"data.curriculum.difficulty: {self.curriculum.difficulty.kind} gives no finite "
                f"number for {lost:,} of {len(values):,} examples, which cannot be sorted"
            )
        return Difficulties(self.curriculum, examples, values)


class Order(Protocol):
    def of_step(self, step: int, before: Before) -> list[int]:
        """The rows of a step."""
        ...

    def metrics(self, step: int) -> dict[str, float]:
        """What the log says of the order at a step."""
        ...


class Epochs:
    """A permutation of all rows for each epoch."""

    def __init__(self, rows: np.ndarray, seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._epoch, self._order = -1, rows

    def of_step(self, step: int, before: Before) -> list[int]:
        return self.between(before(step), before(step + 1))

    def between(self, first: int, last: int) -> list[int]:
        """The rows from place `first` of the endless order to before place `last`."""
        found: list[int] = []
        while first < last:
            epoch, place = divmod(first, len(self._rows))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, keyed_permutation(self._rows, self._seed, epoch)
            found += self._order[place : place + last - first].tolist()
            first = min(last, (epoch + 1) * len(self._rows))
        return found

    def metrics(self, step: int) -> dict[str, float]:
        return {}


class Graded:
    """Rows from the part that a curriculum allows at a step; after its end, epochs of all rows.

    difficulty: (N,) of each row, in the order in which they are read. Equal ones are in random
    order. No row comes twice in a step as long as enough are allowed.
    """

    def __init__(
        self, rows: np.ndarray, difficulty: np.ndarray, curriculum: Curriculum, seed: int
    ) -> None:
        self.curriculum, self._seed = curriculum, seed
        # The random numbers of a step that reads all rows, and so uses none of them.
        mixed = keyed_draw(len(rows), len(rows), seed, curriculum.steps)
        signed = -difficulty if curriculum.hardest_first else difficulty
        order = mixed[np.argsort(signed[mixed], kind="stable")]
        self.rows, self.difficulty = rows[order], difficulty[order]
        self._after = Epochs(rows, seed)

    def allowed(self, step: int) -> np.ndarray:
        """The rows that a step may read, the first of the order first."""
        start, end = self.curriculum.cut(step, len(self.rows))
        return self.rows[start:end]

    def of_step(self, step: int, before: Before) -> list[int]:
        first, last = before(step), before(step + 1)
        if step >= self.curriculum.steps:
            skipped = before(self.curriculum.steps)
            return self._after.between(first - skipped, last - skipped)
        start, end = self.curriculum.cut(step, len(self.rows))
        drawn = keyed_draw(end - start, last - first, self._seed, step)
        return [int(row) for row in self.rows[start + drawn]]

    def metrics(self, step: int) -> dict[str, float]:
        return {"competence": self.curriculum.part(step)[1]}
