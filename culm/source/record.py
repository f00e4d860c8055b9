"""A record of a source, which knows what of it was read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from culm.config import SettingError


class ReadKeys(dict[str, Any]):
    """A mapping that knows which of its keys were never read, empty values excepted."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.unread = {key for key, value in values.items() if value not in (None, "", [], {})}

    def __getitem__(self, key: str) -> Any:
        self.unread.discard(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Of one key, which is then read."""
        self.unread.discard(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.unread.discard(str(key))
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        self.unread.clear()
        return super().__iter__()

    def items(self) -> Any:
        """Of all keys, which are then read."""
        self.unread.clear()
        return super().items()

    def values(self) -> Any:
        """Of all keys, which are then read."""
        self.unread.clear()
        return super().values()


def not_used(what: str, keys: Iterable[str], reader: str = "is not used") -> list[str]:
    """A phrase for each key that nothing has read, to count."""
    return [f"{what} have the key {key!r}, which {reader}" for key in keys]


class Unreadable(SettingError):
    """A file that is damaged, or is not text: it cannot be read, or only up to a place."""


class LeftOut(ValueError):
    """A record that cannot be learned from; the message says why, and such records are counted."""


class Record(ReadKeys):
    """Its fields, and which of them nobody has read.

    place: where it stands, for messages. error: why it cannot be read. failure: what is raised
    then. size: bytes that it takes in its file, where they are more than its text.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        place: str,
        error: str | None = None,
        size: int | None = None,
        failure: type[ValueError] = SettingError,
    ) -> None:
        super().__init__(values)
        self.place, self.error, self.size, self.failure = place, error, size, failure


class Row(Record):
    """A record of a table, which writes numbers as text."""


def place_of(path: object, line: int) -> str:
    """How messages name a line of a file."""
    return f"{path}: line {line}"


def fields_of(record: dict[str, Any]) -> dict[str, Any]:
    """All fields, of which none counts as read by this."""
    return {key: dict.__getitem__(record, key) for key in dict.keys(record)}


def without_absent(value: Any) -> Any:
    """A value of an Arrow table without the fields that only other rows have.

    Such a table gives each object the fields of all objects in its column, null where a row has
    none: a call of one tool would get the arguments of all the others.
    """
    if isinstance(value, dict):
        return {key: without_absent(one) for key, one in value.items() if one is not None}
    nested = isinstance(value, list) and any(isinstance(one, dict | list) for one in value)
    return [without_absent(one) for one in value] if nested else value


def as_record(given: dict[str, Any], place: str) -> Record:
    """A record of any source. place: of one that does not know it."""
    return given if isinstance(given, Record) else Record(given, place)


def at_path(values: Mapping[str, Any], path: str) -> Any:
    """The value of a field, or of one in an object: `article.body`.

    Raises:
        KeyError: there is none.
    """
    if path in values:
        return values[path]
    first, dot, rest = path.partition(".")
    inner = values.get(first)
    if not dot or not isinstance(inner, Mapping):
        raise KeyError(path)
    return at_path(inner, rest)


def without_path(values: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The same values without the one at a path, and without an object that is then empty."""
    first, _, rest = path.partition(".")
    inner = values.get(first)
    others = {name: value for name, value in values.items() if name not in (path, first)}
    if path in values or not isinstance(inner, Mapping):
        return others | ({first: inner} if first in values and first != path else {})
    left = without_path(inner, rest)
    return others | ({first: left} if left else {})


def of_kind(record: dict[str, Any], key: str, kind: Any) -> Any:
    """The value of a field if it is of a kind (a type, or a union of types).

    None if it is not; the field then does not count as read.
    """
    return record[key] if isinstance(dict.get(record, key), kind) else None


def written(record: dict[str, Any], key: str) -> str:
    """The text of a field that holds text or a number.

    Raises:
        ValueError: there is something else, or a number that is not finite.
    """
    value = record.get(key)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, str) and (not number or _is_infinite(value)):
        raise ValueError(f"no text or number in {key!r}; {shape_of(record)}")
    return str(value)


def _is_infinite(value: Any) -> bool:
    """Also of what is no number at all: JSON of some programs holds NaN and Infinity."""
    return isinstance(value, float) and not math.isfinite(value)


def shape_of(record: dict[str, Any]) -> str:
    """The keys of a record and what is under them, for messages."""
    found = (f"{key} ({kind_of_value(value)})" for key, value in record.items())
    return "it has " + ", ".join(found) if record else "it is empty"


def number_in(written: str) -> float | bool | str:
    """The number or truth value that a table writes; the text itself if it is neither."""
    word = written.strip().lower()
    if word in ("true", "false"):
        return word == "true"
    try:
        return float(word)
    except ValueError:
        return written


def valid(text: str) -> str:
    """Without the halves of surrogate pairs that JSON may contain and no encoding can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def kind_of_value(value: Any) -> str:
    """What a JSON value is, in words."""
    if _is_infinite(value):
        return "a number that is not finite"
    names = {str: "text", bool: "true or false", int: "a number", float: "a number"}
    names |= {list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)
