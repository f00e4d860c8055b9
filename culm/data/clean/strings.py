"""The strings of a record: taken out to be cleaned, and put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from culm.data.example import Content, Dialogue

# Keys of messages whose values are names and no text.
NAMES = frozenset({"role", "from", "type", "id", "tool_call_id", "name"})


def strings_of(content: Content) -> list[str]:
    """All texts of a document or a dialogue, without roles and names, in order."""
    found: list[str] = []

    def take(text: str) -> str:
        found.append(text)
        return text

    _mapped(content, take)
    return found


def with_strings(content: Content, texts: Iterator[str]) -> Content:
    """The same with other texts, in the order of `strings_of`."""
    return _mapped(content, lambda _: next(texts))


def _mapped(content: Content, change: Callable[[str], str]) -> Content:
    if isinstance(content, str):
        return change(content)
    return Dialogue([_inside(one, change) for one in content.messages], content.tools)


def _inside(value: Any, change: Callable[[str], str]) -> Any:
    match value:
        case str():
            return change(value)
        case dict():
            return {
                key: one if key in NAMES else _inside(one, change) for key, one in value.items()
            }
        case list():
            return [_inside(one, change) for one in value]
    return value


def texts_of_all(contents: Sequence[Content]) -> tuple[list[str], list[int]]:
    """The texts of all contents of a unit, and how many each has."""
    each = [strings_of(content) for content in contents]
    return [text for texts in each for text in texts], [len(texts) for texts in each]
