"""JSON files: an object on each line, or one list of objects."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from culm.config import SettingError
from culm.data.source.record import Record, kind_of_value
from culm.data.source.text import ERRORS, UNREADABLE, not_utf8, opened, unreadable


def records(path: Path, invalid: str = "error") -> Iterator[Record]:
    """Each object as it is; a bare string becomes {"text": ...}, a list of messages a dialogue.

    Lines are streamed. A list, or an object that fills several lines of a `.json` file, is read
    into memory, since JSON cannot be split safely.
    """
    try:
        with opened(path) as file:
            head = next((line.strip() for line in file if line.strip()), b"")
            head = head.removeprefix(BOM_UTF8)
        with opened(path) as file:
            if head.startswith(b"[") and not _is_dialogue(head):
                yield from _list(path, file, invalid)
            elif head == b"{":
                yield _record(_parse(file.read(), path, 0, invalid, ""), f"{path}: entry 1")
            else:
                yield from _lines(path, file, invalid)
    except UNREADABLE as error:
        raise unreadable(path, error) from None


def _list(path: Path, file: BinaryIO, invalid: str) -> Iterator[Record]:
    values = _parse(file.read(), path, 0, invalid, "")
    if _is_messages(values):
        values = [values]
    for number, value in enumerate(values, start=1):
        yield _record(value, f"{path}: entry {number}")


def _lines(path: Path, file: BinaryIO, invalid: str) -> Iterator[Record]:
    offset = 0
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield _line(line, path, offset, invalid, f"line {number}")
        offset += len(line)


def _line(line: bytes, path: Path, offset: int, invalid: str, place: str) -> Record:
    try:
        return _record(_parse(line, path, offset, invalid, place), f"{path}: {place}")
    except SettingError as error:
        if invalid == "error":
            raise
        return Record({}, f"{path}: {place}", str(error))


def _parse(data: bytes, path: Path, offset: int, invalid: str, place: str) -> Any:
    try:
        return json.loads(data.decode("utf-8", ERRORS[invalid]).removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise not_utf8(path, offset + error.start) from None
    except ValueError as error:
        where = f"{path}: {place}" if place else str(path)
        raise SettingError(
            f"{where}: not readable as JSON: {error}; correct it, or set data.invalid=skip to "
            "leave out such records"
        ) from None


def _record(value: Any, place: str) -> Record:
    if isinstance(value, str):
        return Record({"text": value}, place)
    if _is_messages(value):
        return Record({"messages": value}, place)
    if not isinstance(value, dict):
        raise SettingError(f"{place}: expected an object, found {kind_of_value(value)}")
    return Record(value, place)


def _is_messages(value: Any) -> bool:
    """Whether a list is one dialogue and not a list of records."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and ("role" in one or "from" in one) for one in value)
    )


def _is_dialogue(line: bytes) -> bool:
    """Whether a line is a dialogue by itself, so that others follow on the next lines."""
    try:
        return _is_messages(json.loads(line))
    except ValueError:
        return False
