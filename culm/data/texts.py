"""The text of a corpus, as a tokenizer is trained on it."""

from __future__ import annotations

from collections.abc import Iterator

from culm.config import SettingError
from culm.data.example import RecordFormat
from culm.data.source import Source, found_in


def texts_of(source: Source, format: RecordFormat) -> Iterator[str]:
    """Documents, or all that is said in dialogues and pairs.

    Raises:
        SettingError: a record of another shape; or no text at all, as a tokenizer trained on
            nothing would be of no use.
    """
    empty = True
    for _, text in found_in(source, format.texts):
        empty = empty and not text.strip()
        yield text
    if empty:
        raise SettingError(f"{source.name}: nothing to read: there is no text in it")
