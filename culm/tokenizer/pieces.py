"""Cutting long text where no token can cross, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator

SEARCH = 4096  # characters looked through for a good place to cut


def pieces(text: str, size: int, gap: str | None = None) -> Iterator[str]:
    """`text` in parts of at most `size` characters; joined they are the text again.

    A cut falls between a letter and white space: the patterns that split text into words always
    end a word there, so the tokens are those of the whole. `gap`: the one kind of white space that
    ends a word, if it is not any. A long run without such a place (a file of base64, say) is cut
    where it stands.
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
