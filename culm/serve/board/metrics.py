"""Reads `metrics.jsonl` while a run writes it: each byte once, whole lines only."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.json

from culm.files import line_of
from culm.serve.board.table import Columns, Table
from culm.train.trackers.tracker import numbers

BLOCK = 8 << 20  # bytes that are read and parsed at once
LONG = 16 << 20  # bytes above which a file is sampled first
SAMPLED = 1500  # lines of a sample
TAIL = 64  # bytes before the end of what was read, which must stay as they were


class Metrics:
    """The numbers of a metrics file, kept up to date by `read`.

    table: what is known. complete: it has every line of the file; until then a long file has a
    sample of its lines. damaged: lines that are left out. version: grows with each change.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = 0
        self._forget()

    def _forget(self) -> None:
        self.table = Table()  # what is shown
        self._read, self._offset, self._size = self.table, 0, 0
        self._inode, self._tail = -1, b""
        self.damaged, self.complete = 0, True
        self.version += 1

    @property
    def share(self) -> float:
        """Of the file that was read."""
        return self._offset / self._size if self._size and not self.complete else 1.0

    def read(self) -> bool:
        """Read the next lines, at most `BLOCK` bytes; whether there may be more.

        A file that was replaced or cut, as by a run that resumes, is read from its start.
        """
        try:
            with self.path.open("rb") as file:
                return self._advance(file)
        except FileNotFoundError:
            if self._inode != -1:
                self._forget()
            return False

    def _advance(self, file: BinaryIO) -> bool:
        found = os.fstat(file.fileno())
        self._size = found.st_size
        file.seek(max(self._offset - TAIL, 0))
        same = found.st_ino == self._inode and file.read(len(self._tail)) == self._tail
        if not same:
            self._forget()
            self._inode, self._size = found.st_ino, found.st_size
            if self._size > LONG:
                self._sample(file)
        file.seek(self._offset)
        block = file.read(BLOCK)
        end = block.rfind(b"\n") + 1
        if not end:
            if len(block) == BLOCK:  # no line is so long: this is no file of metrics
                self._offset += BLOCK
                self.damaged += 1
                return True
            self._finish()
            return False
        columns, damaged = parse(block[:end])
        self._read.append(columns)
        self.damaged += damaged
        self._offset += end
        file.seek(max(self._offset - TAIL, 0))
        self._tail = file.read(min(TAIL, self._offset))
        more = self._offset < self._size and len(block) == BLOCK
        if self.table is self._read:
            self.version += 1
        if not more:
            self._finish()
        return more

    def _finish(self) -> None:
        if self.table is not self._read:
            self.table, self.complete = self._read, True
            self.version += 1

    def _sample(self, file: BinaryIO) -> None:
        """Show lines from all over a long file, until it is read."""
        lines = b"".join(sampled_lines(file, self._size, SAMPLED))
        columns, _ = parse(lines)
        self.table, self.complete = Table(), False
        self.table.append(columns)
        self._read = Table()


def sampled_lines(file: BinaryIO, size: int, count: int) -> Iterator[bytes]:
    """The first and the last whole line, and about `count` between them at equal distances."""
    longest = 1 << 16
    for place in np.linspace(0, max(size - longest, 0), count).astype(int).tolist():
        file.seek(place)
        if place:
            file.readline(longest)
        line = file.readline(longest)
        if line.endswith(b"\n"):
            yield line
    yield from (line for line in file.read(longest).splitlines(True)[-1:] if line[-1:] == b"\n")


def parse(text: bytes) -> tuple[Columns, int]:
    """The numbers in lines of JSON objects that have a `step`, as columns, and how many lines are
    damaged.

    text: whole lines. A number that is missing or null is nan; what is no number is left out.
    """
    try:
        options = pa.json.ReadOptions(block_size=min(len(text) + 1, 1 << 20))
        table = pa.json.read_json(pa.BufferReader(text), options)
        return _of_table(table)
    except (pa.ArrowException, _Mixed):  # a damaged line, or a name with numbers and texts
        return _of_lines(text.split(b"\n")[:-1])


class _Mixed(Exception):
    """Not a table of plain values with a whole `step`."""


def _of_table(table: pa.Table) -> tuple[Columns, int]:
    if "step" not in table.column_names or not pa.types.is_integer(table["step"].type):
        raise _Mixed
    kept = np.asarray(table["step"].is_valid())
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if pa.types.is_nested(kind):
            raise _Mixed
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):  # a name begins with a number
            values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)[kept]
            if name == "step" or not np.isnan(values).all():  # its only numbers had no step
                columns[name] = values
    return columns, int((~kept).sum())


def _of_lines(lines: Sequence[bytes]) -> tuple[Columns, int]:
    texts = [line.decode("utf-8", "replace") for line in lines if line.strip()]
    rows = [numbers(row) for row in map(line_of, texts) if row is not None]
    names = dict.fromkeys(name for row in rows for name, x in row.items() if not math.isnan(x))
    columns = {name: np.array([row.get(name, math.nan) for row in rows]) for name in names}
    return columns or {"step": np.empty(0)}, len(texts) - len(rows)
