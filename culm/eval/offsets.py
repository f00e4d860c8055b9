"""Where the tokens of a text start, as a server tells it in `logprobs`: each in its own way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any


def starts_of(given: Mapping[str, Any], text: str) -> list[int]:
    """Characters of the text where its tokens start, at or after its end where one was generated.

    given: `tokens` and `text_offset` of the text and of at most one new token. A server counts
    characters or bytes, and some count a first token that is no part of the text, such as `<s>`.

    Raises:
        ValueError: they are not those of the text.
    """
    offsets = [int(one) for one in given["text_offset"]]
    tokens = given.get("tokens")
    pieces = list(map(str, tokens)) if isinstance(tokens, list) else []
    for first in (0, 1):
        if "".join(pieces[first:]).startswith(text):
            return [0] * first + _starts(pieces[first:])
    before = len(pieces[0]) if pieces else 0
    for shift in (0, before):
        if offsets[-1] - shift == len(text):
            return [max(one - shift, 0) for one in offsets]
        if offsets[-1] - shift == len(text.encode()):
            return _characters([max(one - shift, 0) for one in offsets], text)
    if text.isascii() and offsets[-1] < len(text):  # nothing was generated
        return offsets
    raise ValueError("the offsets of tokens do not fit their text")


def _starts(pieces: Sequence[str]) -> list[int]:
    return list(accumulate(map(len, pieces[:-1]), initial=0))


def _characters(offsets: Sequence[int], text: str) -> list[int]:
    """Characters that hold these bytes."""
    found = [place for place, letter in enumerate(text) for _ in letter.encode()]
    return [found[one] if one < len(found) else len(text) for one in offsets]
