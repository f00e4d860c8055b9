"""The first records of a corpus, to look at and to estimate from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from culm.data.source import Source

CHARACTERS = 1_000_000  # read at most, the last record excepted


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


def sample(source: Source, characters: int = CHARACTERS) -> Sample:
    """The first records of a source, about so many characters."""
    taken, records = 0, []
    for record in source:
        records.append(record)
        taken += _characters(dict.values(record))
        if taken >= characters:
            return Sample(source.name, records, taken / source.size if source.size else None)
    return Sample(source.name, records, 1.0)


def _characters(values: Iterable[object]) -> int:
    return sum(len(value) if isinstance(value, str) else len(str(value)) for value in values)
