"""Columns of numbers that grow at their end, a row for each step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Columns = Mapping[str, np.ndarray]


def forward_rows(steps: np.ndarray) -> np.ndarray:
    """Which rows stay where steps repeat: those before every later row. The last time counts.

    steps: (N,). Returns (N,) of booleans. A run that goes back trains its steps again, and those
    after them belong to what it gave up.
    """
    least_after = np.minimum.accumulate(steps[::-1])[::-1]
    return np.append(steps[:-1] < least_after[1:], True) if len(steps) else steps.astype(bool)


class Table:
    """Columns of one length; nan where a row has no number of that name. `step` is one of them, and
    ascends.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._columns: dict[str, np.ndarray] = {}  # longer than `rows`: room to grow

    @property
    def names(self) -> list[str]:
        return list(self._columns)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name][: self.rows]

    def append(self, new: Columns) -> None:
        """Add rows; where their steps were there already, the new rows replace the old ones.

        new: columns of one length, `step` among them.
        """
        if not len(new["step"]):
            return
        kept = forward_rows(new["step"])
        if self.rows:
            self.rows = int(np.searchsorted(self["step"], new["step"][kept][0]))
        end = self.rows + int(kept.sum())
        for name in dict.fromkeys([*self._columns, *new]):
            column = self._with_room(name, end)
            column[self.rows : end] = new[name][kept] if name in new else np.nan
        self.rows = end

    def _with_room(self, name: str, rows: int) -> np.ndarray:
        old = self._columns.get(name)
        if old is not None and len(old) >= rows:
            return old
        column = np.full(max(64, rows + rows // 2), np.nan)
        if old is not None:
            column[: self.rows] = old[: self.rows]
        self._columns[name] = column
        return column
