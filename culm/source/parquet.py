"""Parquet files, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from culm.config import SettingError
from culm.files import refuse_pointer
from culm.source.record import Record

MAGIC = b"PAR1"  # the first bytes of every file
ROWS = 256  # rows in memory at once


def records(path: Path) -> Iterator[Record]:
    """A row as a mapping of its columns; rows count from 1."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise SettingError(f"{path}: parquet needs the extra: pip install 'culm[data]'") from None
    refuse_pointer(path)
    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise SettingError(f"{path}: it has the column {twice!r} twice; rename one of them")
            batches = file.iter_batches(batch_size=ROWS)
            rows = chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, row in enumerate(rows, start=1):
                yield Record(row, f"{path}: row {number}")
    except (ArrowException, OSError) as error:
        raise SettingError(f"{path}: cannot be read as parquet: {error}") from None
