"""What the records of a source say, in units: contents that belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from culm.data.divide import Unit
from culm.data.example import Content, RecordFormat, number_of
from culm.data.notes import Notes
from culm.source.record import Record, not_used
from culm.source.source import Source, found_in

Numbers = tuple[float, ...]


def units_of(
    source: Source,
    format: RecordFormat,
    notes: Notes,
    difficulty: str | None = None,
    advance: Callable[[float], None] = lambda size: None,
) -> Iterator[Unit]:
    """Every unit, in order. notes: where records that are left out, and keys that are not used, are
    counted. difficulty: a field with a number. advance: hears how many bytes were read.
    """
    done = 0

    def read(record: Record) -> Iterator[tuple[Sequence[Numbers], Numbers, list[Content]]]:
        hard = () if difficulty is None else (number_of(record, difficulty),)
        yield format.numbers(record), hard, list(format.contents(record))

    for record, [(numbers, hard, contents)] in found_in(source, read, notes.skipped):
        notes.counts.update(not_used("records", record.unread))
        notes.read(contents)
        # What compares answers to one question stays in one split.
        size = 1 if format.group == 1 else max(1, len(contents))
        for start in range(0, len(contents), size):
            part = slice(start, start + size)
            yield (unit := Unit(contents[part], record.place, numbers[part], hard))
            advance(unit.size)
            done += unit.size
    advance(max(0, (source.size or 0) - done))  # what quotes and braces of the files took
