"""The first records of a corpus, to look at and to estimate from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from culm.data.source import Source, bytes_in
from culm.data.source.record import Record, fields_of

SIZE = 1_000_000  # bytes of text read at most, the last record excepted


@dataclass(frozen=True)
class Sample:
    """A source of its own. share: of the whole that it is; None if that is unknown."""

    name: str
    records: list[dict[str, Any]]
    share: float | None

    @property
    def size(self) -> int | None:
        return None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)


def sample(source: Source, size: int = SIZE) -> Sample:
    """The first records of a source, about so many bytes of text."""
    taken, records = 0, []
    for record in source:
        records.append(record)
        taken += _size(record)
        if taken >= size:
            return Sample(source.name, records, taken / source.size if source.size else None)
    return Sample(source.name, records, 1.0)


def _size(record: dict[str, Any]) -> int:
    """Bytes that a record takes in its file: those of a line of JSON, or of a text."""
    if isinstance(record, Record):
        return len(json.dumps(fields_of(record), ensure_ascii=False, default=str).encode())
    return bytes_in(record)
