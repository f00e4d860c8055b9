"""The text of a corpus, for training a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

from culm.config import SettingError
from culm.data.clean.cleaner import Cleaner
from culm.data.clean.strings import texts_of_all
from culm.data.example import RecordFormat
from culm.data.notes import Notes
from culm.data.units import units_of
from culm.source import Invalid
from culm.source.source import Source, found_in


def texts_of(
    source: Source,
    format: RecordFormat,
    invalid: Invalid = "error",
    notes: Notes | None = None,
    cleaner: Cleaner | None = None,
) -> Iterator[str]:
    """Documents, or the messages of dialogues and pairs.

    invalid: "skip" leaves out records of an unknown shape. notes: where they are counted; not
    needed if the same source is prepared later, which counts them. cleaner: what the text goes
    through first; then it is that of the units that stay.

    Raises:
        SettingError: a record of an unknown shape, or no text at all.
    """
    empty = True
    for texts in _groups(source, format, invalid, notes, cleaner):
        empty = empty and not any(text.strip() for text in texts)
        yield from texts
    if empty:
        raise SettingError(f"{source.name}: nothing to read: it contains no text")


def _groups(
    source: Source,
    format: RecordFormat,
    invalid: Invalid,
    notes: Notes | None,
    cleaner: Cleaner | None,
) -> Iterator[list[str]]:
    """The texts of each record, or of each unit that the cleaning leaves."""
    if cleaner is not None and cleaner.stages:
        units = units_of(source, format, notes or Notes(invalid, silent=True))
        for unit in cleaner.clean(units):
            yield texts_of_all(unit.contents)[0]
        return
    skipped = (notes or Notes(invalid, silent=True)).skipped
    for _, texts in found_in(source, format.texts, skipped):
        yield texts
