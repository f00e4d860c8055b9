"""A record of a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from culm.tokenizer.template import ReadKeys


class Record(ReadKeys):
    """Its fields, and which of them nobody has read.

    place: where it stands, for messages. error: why it cannot be read, where bad ones are skipped.
    """

    def __init__(self, values: Mapping[str, Any], place: str, error: str | None = None) -> None:
        super().__init__(values)
        self.place, self.error = place, error


def fields_of(record: dict[str, Any]) -> dict[str, Any]:
    """All fields, of which none counts as read by this."""
    return {key: dict.__getitem__(record, key) for key in dict.keys(record)}


class LeftOut(ValueError):
    """A record that cannot be learned from; the message says why, and such records are counted."""


def shape_of(record: dict[str, Any]) -> str:
    """The keys of a record and what is under them, for messages."""
    found = (f"{key} ({kind_of_value(value)})" for key, value in record.items())
    return "it has " + ", ".join(found) if record else "it is empty"


def kind_of_value(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {str: "text", bool: "true or false", int: "a number", float: "a number"}
    names |= {list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)
