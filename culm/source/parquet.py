"""Parquet files, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from culm.config import SettingError

ROWS = 256  # rows in memory at once


def records(path: Path) -> Iterator[dict[str, Any]]:
    """A row as a mapping of its columns."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise SettingError(f"{path}: parquet needs the extra: pip install 'culm[data]'") from None
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise SettingError(f"{path}: cannot be read as parquet: {error}") from None
