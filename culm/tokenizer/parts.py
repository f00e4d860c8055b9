"""Encoding a text in parts: where it may be cut, and how its middle is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

PIECE = 1 << 16  # characters encoded at once: the library needs 100 bytes per token meanwhile
SEARCH = 4096  # characters searched for a good place to cut


def pieces(text: str, size: int, gap: str | None = None) -> Iterator[str]:
    """`text` in parts of up to `size` characters, so that memory stays bounded.

    No token crosses a cut, so the tokens are those of the full text: a cut is between a letter and
    white space, where the patterns that split text into words always end a word. A long run without
    such a place (a file of base64, say) is cut after `size` characters.
    gap: the only white space that ends a word; None: any does.
    """
    start = 0
    while len(text) - start > size:
        end = start + size
        end = next(
            (
                place
                for place in range(end, max(start, end - SEARCH), -1)
                if text[place - 1].isalpha()
                and (text[place] == gap if gap else text[place].isspace())
            ),
            end,
        )
        yield text[start:end]
        start = end
    yield text[start:]


def valid(text: str) -> str:
    """Without the halves of surrogate pairs that JSON may contain and no encoding can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def without_prefix(written: str) -> str | None:
    """The JSON of a tokenizer, changed to add no space before a text; None if it adds none.

    Sentencepiece adds one, so that the first word is like any other: it reads "a cat" as "▁a▁cat".
    The middle of a text must not get one.
    """
    parts = json.loads(written)
    changed = {name: _plain(parts[name]) for name in ("normalizer", "pre_tokenizer")}
    if changed.items() <= parts.items():
        return None
    return json.dumps(parts | changed, ensure_ascii=False)


def _plain(part: Any) -> Any:
    match part:
        case {"type": "Prepend"}:
            return None
        case {"type": "Metaspace"}:
            return {**part, "prepend_scheme": "never"}
        case {"type": "ByteLevel"}:
            return {**part, "add_prefix_space": False}
        case {"type": "Sequence", "normalizers": inner}:
            return {**part, "normalizers": [p for p in map(_plain, inner) if p is not None]}
        case {"type": "Sequence", "pretokenizers": inner}:
            return {**part, "pretokenizers": list(map(_plain, inner))}
    return part
