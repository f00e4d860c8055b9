"""JSON files: an object on each line, or one list of objects."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from culm.config import SettingError
from culm.source.compressed import UNREADABLE, check_compression, opened, unreadable
from culm.source.reading import Reading
from culm.source.record import Record, Unreadable, kind_of_value, place_of, valid
from culm.source.remote import File
from culm.source.text import ERRORS, no_text, not_utf8

OBJECT = re.compile(rb"\s*\[?\s*\{\s*\"")
GAP = re.compile(r"[ \t\r\n,]*")  # between the entries of a list
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a surrogate pair, which JSON may also write alone


class _TwiceError(ValueError):
    """An object has two values of one key, of which either may be meant."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _TwiceError(f"has the key {twice!r} twice")
    return made


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def records(path: File, reading: Reading) -> Iterator[Record]:
    """Each object as it is, with the line where it begins; a bare string becomes {"text": ...}, a
    list of messages a dialogue.

    Lines are streamed; one that is not JSON is a record with an error. A list, or an object that
    fills several lines of a `.json` file, is read into memory, since JSON cannot be split safely.
    """
    try:
        with opened(path) as file:
            head = next((line.strip() for line in file if line.strip()), b"")
            head = head.removeprefix(BOM_UTF8)
        check_compression(path, head)
        if b"\0" in head:
            raise no_text(path, head)
        with opened(path) as file:
            if head == b"{" or (head.startswith(b"[") and not _is_dialogue(head)):
                yield from _whole(path, _text(file.read(), path, 0, reading.invalid))
            else:
                yield from _lines(path, file, reading.invalid)
    except UNREADABLE as error:
        raise unreadable(path, error) from None


def is_json(head: bytes) -> bool:
    """Whether a file that begins so holds an object, or a list of objects."""
    return OBJECT.match(head.removeprefix(BOM_UTF8)) is not None


def _whole(path: File, text: str) -> Iterator[Record]:
    """The entries of a list, or the one object."""
    try:
        values = _parse(text, path, 1)
    except _TwiceError as error:
        raise Unreadable(f"{path}: an object {error}; correct it, or leave the file out") from None
    except ValueError as error:
        raise Unreadable(f"{error}; correct it, or leave the file out") from None
    if not isinstance(values, list) or _is_messages(values):
        values, lines = [values], [1 + text[: len(text) - len(text.lstrip())].count("\n")]
    else:
        lines = list(_lines_of_entries(text))
    for value, line in zip(values, lines, strict=True):
        yield _record(value, place_of(path, line))


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


def _lines(path: File, file: BinaryIO, invalid: str) -> Iterator[Record]:
    offset = 0
    for number, line in enumerate(file, start=1):
        if line.strip():
            place = place_of(path, number)
            try:
                # What is skipped here is the record and not the bytes, which would change it.
                text = _text(line, path, offset, "error" if invalid == "skip" else invalid)
                record = _record(_parse(text.rstrip(), path, number), place)
            except _TwiceError as error:
                record = Record({}, place, f"{place}: it {error}")
            except SettingError as error:
                if invalid != "skip":
                    raise
                record = Record({}, place, str(error))
            except ValueError as error:
                record = Record({}, place, str(error))
            record.size = len(line)
            yield record
        offset += len(line)


def _text(data: bytes, path: File, offset: int, invalid: str) -> str:
    try:
        return data.decode("utf-8", ERRORS[invalid]).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise not_utf8(path, offset + error.start) from None


def _parse(text: str, path: File, line: int) -> Any:
    """line: the one where the text begins.

    Raises:
        ValueError: it is not JSON; says where.
        _TwiceError: an object has a key twice.
    """
    try:
        value = DECODER.decode(text)
        if HALF.search(text):
            value = DECODER.decode(valid(json.dumps(value, ensure_ascii=False)))
        return value
    except _TwiceError:
        raise
    except (ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            line += error.lineno - 1
            reason = f"{error.msg} at column {error.colno}"
        raise ValueError(f"{place_of(path, line)}: not readable as JSON: {reason}") from None


def _record(value: Any, place: str) -> Record:
    if isinstance(value, str):
        return Record({"text": value}, place)
    if _is_messages(value):
        return Record({"messages": value}, place)
    if isinstance(value, dict):
        return Record(value, place)
    return Record({}, place, f"{place}: expected an object, found {kind_of_value(value)}")


def _is_messages(value: Any) -> bool:
    """Whether a list is one dialogue and not a list of records."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and ("role" in one or "from" in one) for one in value)
    )


def _is_dialogue(line: bytes) -> bool:
    """Whether this line alone is a dialogue, as opposed to a file that is one JSON list."""
    try:
        return _is_messages(json.loads(line))
    except (ValueError, RecursionError):
        return False
