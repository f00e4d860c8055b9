"""The text of a corpus, for training a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

from culm.config import SettingError
from culm.data.example import RecordFormat
from culm.data.source import Source, found_in


def texts_of(source: Source, format: RecordFormat) -> Iterator[str]:
    """Documents, or the messages of dialogues and pairs.

    Raises:
        SettingError: a record of an unknown shape, or no text at all.
    """
    empty = True
    for _, text in found_in(source, format.texts):
        empty = empty and not text.strip()
        yield text
    if empty:
        raise SettingError(f"{source.name}: nothing to read: it contains no text")
