"""A long text in parts."""

from __future__ import annotations

from collections.abc import Iterator

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
        end = cut_before(text, start, start + size, gap)
        yield text[start:end]
        start = end
    yield text[start:]


def cut_before(text: str, start: int, end: int, gap: str | None = None) -> int:
    """A good place to cut a text, at `end` or up to 4096 characters before it; else `end`."""
    return next(
        (
            place
            for place in range(min(end, len(text) - 1), max(start, end - SEARCH), -1)
            if text[place - 1].isalpha() and (text[place] == gap if gap else text[place].isspace())
        ),
        end,
    )
