"""The text of a corpus, for training a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

from culm.config import SettingError
from culm.data.example import RecordFormat
from culm.data.notes import Notes
from culm.source import Invalid
from culm.source.source import Source, found_in


def texts_of(
    source: Source,
    format: RecordFormat,
    invalid: Invalid = "error",
    notes: Notes | None = None,
) -> Iterator[str]:
    """Documents, or the messages of dialogues and pairs.

    invalid: "skip" leaves out records of an unknown shape. notes: where they are counted; not
    needed if the same source is prepared later, which counts them.

    Raises:
        SettingError: a record of an unknown shape, or no text at all.
    """
    empty = True
    silent = invalid == "skip" and notes is None
    skipped = (lambda error: None) if silent else (notes or Notes(invalid)).skipped
    for _, texts in found_in(source, format.texts, skipped):
        empty = empty and not any(text.strip() for text in texts)
        yield from texts
    if empty:
        raise SettingError(f"{source.name}: nothing to read: it contains no text")
