"""Tables of text, CSV and TSV: the names in the first row are the fields of all others."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from culm.config import SettingError
from culm.source.reading import Reading
from culm.source.record import Record, Row, Unreadable
from culm.source.remote import File
from culm.source.text import LONGEST, decoded

DELIMITERS = (",", ";", "\t")  # in the order in which a header is searched; Excel writes the second


def records(file: File, reading: Reading) -> Iterator[Record]:
    """A row as a mapping of its columns, with the line where it ends.

    Raises:
        SettingError: two columns have one name, or one has none.
        Unreadable: a quote is never closed, or the file is not UTF-8.
    """
    # Beyond its own limit of 131,072 the module refuses a text; a quote that is never closed must
    # not read the complete file into memory either.
    csv.field_size_limit(LONGEST)
    keep = reading.invalid == "skip"  # what is left out is the record and not the bytes
    lines = _lines(decoded(file, "mark" if keep else reading.invalid))
    first = next((line for line in lines if line.strip()), "")
    delimiter = next((one for one in DELIMITERS if one in first), ",")
    rows = csv.reader(_with(first, lines), delimiter=delimiter, strict=True)
    try:
        names = _names(next(rows, []), file)
        for row in rows:
            if row:
                yield _record(row, names, f"{file}: line {rows.line_num}")
    except csv.Error as error:
        raise Unreadable(
            f"{file}: line {rows.line_num}: not readable as a table: {error}; correct it, or leave "
            "the file out"
        ) from None


def _record(row: list[str], names: list[str], place: str) -> Record:
    if len(row) != len(names):
        error = f"{place}: the row has {len(row)} values, and the header {len(names)} names"
        return Record({}, place, error)
    if any("\udc80" <= letter <= "\udcff" for value in row for letter in value):
        return Record({}, place, f"{place}: a value is not UTF-8")
    return Row(dict(zip(names, row, strict=True)), place)


def _names(header: list[str], file: File) -> list[str]:
    names = [name.strip() for name in header]
    for number, name in enumerate(names, start=1):
        if not name:
            raise SettingError(f"{file}: column {number} has no name in the first row; add one")
        if names.count(name) > 1:
            raise SettingError(f"{file}: it has the column {name!r} twice; rename one of them")
    return names


def _lines(blocks: Iterator[str]) -> Iterator[str]:
    """Lines with their ends. One without an end is not cut: the reader limits its values."""
    held = ""
    for block in blocks:
        *lines, held = (held + block).splitlines(keepends=True) or [""]
        if held.endswith("\n"):
            lines, held = [*lines, held], ""
        yield from lines
        if len(held) > LONGEST:  # several values may be one line, but not of any length
            yield held
            held = ""
    if held:
        yield held


def _with(first: str, others: Iterator[str]) -> Iterator[str]:
    yield first
    yield from others
