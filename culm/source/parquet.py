"""Parquet files, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from culm.config import SettingError
from culm.source.compressed import opened, refuse_compressed, refuse_pointer, unreadable
from culm.source.reading import Reading
from culm.source.record import Record, Unreadable, without_absent
from culm.source.remote import File

MAGIC = b"PAR1"  # the first bytes of every file
ROWS = 256  # rows in memory at once


def records(path: File, reading: Reading) -> Iterator[Record]:
    """A row as a mapping of its columns; rows count from 1."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise SettingError(f"{path}: parquet needs the extra: pip install 'culm[data]'") from None
    refuse_compressed(path, "parquet")
    try:
        with opened(path) as content, ParquetFile(content) as file:
            names = file.schema_arrow.names
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise SettingError(f"{path}: it has the column {twice!r} twice; rename one of them")
            batches = file.iter_batches(batch_size=ROWS)
            rows = chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, row in enumerate(rows, start=1):
                values = {name: without_absent(value) for name, value in row.items()}
                yield Record(values, f"{path}: row {number}")
    except OSError as error:
        raise unreadable(path, error) from None
    except ArrowException as error:
        refuse_pointer(path)
        raise Unreadable(f"{path}: cannot be read as parquet: {error}") from None
