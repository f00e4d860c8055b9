"""JSON files: an object on each line, or one list of objects."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from culm.config import SettingError
from culm.data.source.text import ERRORS, UNREADABLE, not_utf8, opened, unreadable


def records(path: Path, invalid: str = "error") -> Iterator[dict[str, Any]]:
    """Each object as it is; a bare string becomes {"text": ...}.

    Lines are streamed. A list, or an object that fills several lines of a `.json` file, is read
    into memory, since JSON cannot be split safely.
    """
    try:
        with opened(path) as file:
            head = next((line.strip() for line in file if line.strip()), b"")
            head = head.removeprefix(BOM_UTF8)
        with opened(path) as file:
            if head.startswith(b"["):
                yield from _list(path, file, invalid)
            elif head == b"{":
                yield _record(_parse(file.read(), path, 0, invalid, ""), path, "entry 1")
            else:
                yield from _lines(path, file, invalid)
    except UNREADABLE as error:
        raise unreadable(path, error) from None


def _list(path: Path, file: BinaryIO, invalid: str) -> Iterator[dict[str, Any]]:
    values = _parse(file.read(), path, 0, invalid, "")
    for number, value in enumerate(values, start=1):
        yield _record(value, path, f"entry {number}")


def _lines(path: Path, file: BinaryIO, invalid: str) -> Iterator[dict[str, Any]]:
    offset = 0
    for number, line in enumerate(file, start=1):
        if line.strip():
            place = f"line {number}"
            yield _record(_parse(line, path, offset, invalid, place), path, place)
        offset += len(line)


def _parse(data: bytes, path: Path, offset: int, invalid: str, place: str) -> Any:
    try:
        return json.loads(data.decode("utf-8", ERRORS[invalid]).removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise not_utf8(path, offset + error.start) from None
    except ValueError as error:
        where = f"{path}: {place}" if place else str(path)
        raise SettingError(f"{where}: not readable as JSON: {error}") from None


def _record(value: Any, path: Path, place: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        found = type(value).__name__
        raise SettingError(f"{path}: {place}: expected an object, found {found}")
    return value
