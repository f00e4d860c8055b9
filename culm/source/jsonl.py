"""JSON files: an object on each line, or one list of objects."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from culm.config import SettingError
from culm.source.record import Record, kind_of_value, place_of
from culm.source.text import ERRORS, UNREADABLE, not_utf8, opened, unreadable

OBJECT = re.compile(rb"\s*\[?\s*\{\s*\"")
GAP = re.compile(r"[ \t\r\n,]*")  # between the entries of a list


def records(path: Path, invalid: str = "error") -> Iterator[Record]:
    """Each object as it is, with the line where it begins; a bare string becomes {"text": ...}, a
    list of messages a dialogue.

    Lines are streamed. A list, or an object that fills several lines of a `.json` file, is read
    into memory, since JSON cannot be split safely.
    """
    try:
        with opened(path) as file:
            head = next((line.strip() for line in file if line.strip()), b"")
            head = head.removeprefix(BOM_UTF8)
        with opened(path) as file:
            if head == b"{" or (head.startswith(b"[") and not _is_dialogue(head)):
                yield from _whole(path, file.read(), invalid)
            else:
                yield from _lines(path, file, invalid)
    except UNREADABLE as error:
        raise unreadable(path, error) from None


def is_json(head: bytes) -> bool:
    """Whether a file that begins so holds an object, or a list of objects."""
    return OBJECT.match(head.removeprefix(BOM_UTF8)) is not None


def _whole(path: Path, data: bytes, invalid: str) -> Iterator[Record]:
    """The entries of a list, or the one object."""
    text = _text(data, path, 0, invalid)
    values = _parse(text, path, 1)
    if not isinstance(values, list) or _is_messages(values):
        values, lines = [values], [1 + text[: len(text) - len(text.lstrip())].count("\n")]
    else:
        lines = list(_lines_of_entries(text))
    for value, line in zip(values, lines, strict=True):
        yield _record(value, place_of(path, line), invalid)


def _lines_of_entries(text: str) -> Iterator[int]:
    """The line where each entry of a valid list begins."""
    decode, place, line, seen = json.JSONDecoder().raw_decode, text.index("[") + 1, 1, 0
    while True:
        place = cast(re.Match[str], GAP.match(text, place)).end()
        if text[place] == "]":
            return
        line += text.count("\n", seen, place)
        seen = place
        yield line
        _, place = decode(text, place)


def _lines(path: Path, file: BinaryIO, invalid: str) -> Iterator[Record]:
    offset = 0
    for number, line in enumerate(file, start=1):
        if line.strip():
            place = place_of(path, number)
            try:
                value = _parse(_text(line, path, offset, invalid), path, number)
            except SettingError as error:
                if invalid == "error":
                    raise
                yield Record({}, place, str(error))
            else:
                record = _record(value, place, invalid)
                record.size = len(line)
                yield record
        offset += len(line)


def _text(data: bytes, path: Path, offset: int, invalid: str) -> str:
    try:
        return data.decode("utf-8", ERRORS[invalid]).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise not_utf8(path, offset + error.start) from None


def _parse(text: str, path: Path, line: int) -> Any:
    """line: the one where the text begins."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            line += error.lineno - 1
            reason = f"{error.msg} at column {error.colno}"
        raise SettingError(
            f"{place_of(path, line)}: not readable as JSON: {reason}; correct it, or set "
            "data.invalid=skip to leave out such records"
        ) from None


def _record(value: Any, place: str, invalid: str) -> Record:
    if isinstance(value, str):
        return Record({"text": value}, place)
    if _is_messages(value):
        return Record({"messages": value}, place)
    if isinstance(value, dict):
        return Record(value, place)
    error = f"{place}: expected an object, found {kind_of_value(value)}"
    if invalid == "error":
        raise SettingError(error)
    return Record({}, place, error)


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
    except (ValueError, RecursionError):
        return False
