"""Whole rows of each step for corpora with weights, so that the shares over all steps are exact.

The corpora are the leaves of a binary tree. At each fork, all rows so far, and not those of a step,
are divided by the two weights and rounded. So the error of a corpus does not grow with the steps:
with constant weights it is at most half a row for each fork on its way. Neither side of a fork ever
shrinks, so that no step has less than no row of a corpus.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor

import numpy as np

from culm.data.batch_ramp import BatchSizes

HALF = Fraction(1, 2)


@dataclass(frozen=True)
class _Fork:
    """left, right: a fork, or the number of a corpus. Of the step of the last change: `share` of
    the left from there on; rows before it in `total`, those of the left `before` and, not rounded,
    `exact`.
    """

    left: _Fork | int
    right: _Fork | int
    share: Fraction
    total: int
    before: int
    exact: Fraction

    def divided(self, total: int) -> tuple[int, int]:
        """The numbers of rows at or after that step, on the left and on the right."""
        more = total - self.total
        left = floor(self.exact + self.share * more + HALF)
        left = min(max(left, self.before), self.before + more)
        return left, total - left


class Apportionment:
    """How many rows of each corpus come before a step: a function of the step alone.

    weights: (steps, corpora) fp64; the last row holds for all later steps too. Steps before the
    last change of a weight are in a table, all others are computed. sizes: rows of each step.
    """

    def __init__(self, weights: np.ndarray, sizes: BatchSizes) -> None:
        self._weights, self._sizes = weights, sizes
        self._table = np.zeros(weights.shape, dtype=np.int64)
        steps = range(len(weights))
        rows = np.array([[sizes.of(step)] for step in steps])
        read = rows[:-1] * weights[:-1] / weights[:-1].sum(1, keepdims=True)
        self._exact = np.concatenate([np.zeros_like(weights[:1]), read.cumsum(0)])
        totals = np.array([sizes.before(step) for step in steps], dtype=np.int64)
        self._root = self._divided(totals, range(len(weights[0])))

    def before(self, step: int) -> list[int]:
        """Rows of each corpus in all steps before this one."""
        if step < len(self._table):
            return [int(count) for count in self._table[step]]
        counts = [0] * len(self._table[0])
        waiting: list[tuple[_Fork | int, int]] = [(self._root, self._sizes.before(step))]
        while waiting:
            fork, total = waiting.pop()
            if isinstance(fork, int):
                counts[fork] = total
                continue
            left, right = fork.divided(total)
            waiting += [(fork.left, left), (fork.right, right)]
        return counts

    @property
    def changes(self) -> bool:
        """Whether the shares change over the steps."""
        return len(self._weights) > 1

    def shares(self, step: int) -> list[float]:
        """Of each corpus at a step, before rounding."""
        weights = self._weights[min(step, len(self._weights) - 1)]
        return [float(weight) for weight in weights / weights.sum()]

    def _divided(self, totals: np.ndarray, members: range) -> _Fork | int:
        """totals: (steps,) rows of all members before each step of the table."""
        if len(members) == 1:
            self._table[:, members[0]] = totals
            return members[0]
        sides = members[: len(members) // 2], members[len(members) // 2 :]
        left, right = (self._weights[:, side].sum(1) for side in sides)
        both = left + right
        shares = np.divide(left, both, out=np.zeros_like(both), where=both > 0)
        # Of the rows that all members have too many or too few, the left takes its share.
        wanted = self._exact[:, sides[0]].sum(1)
        exact = wanted + shares * (totals - wanted - self._exact[:, sides[1]].sum(1))
        lefts = np.maximum.accumulate(_rounded(exact))
        rights = np.maximum.accumulate(totals - lefts)
        lefts = totals - rights
        return _Fork(
            self._divided(lefts, sides[0]),
            self._divided(rights, sides[1]),
            share=Fraction(float(shares[-1])),
            total=int(totals[-1]),
            before=int(lefts[-1]),
            exact=Fraction(float(exact[-1])),
        )


def _rounded(values: np.ndarray) -> np.ndarray:
    """The nearest whole numbers, int64; a half is rounded up, as `_Fork.divided` does."""
    below = np.floor(values)
    return (below + (values - below >= 0.5)).astype(np.int64)
