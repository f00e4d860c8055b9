"""A text with special tokens to ids, each with its place in the text."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import tokenizers

from culm.tokenizer.parts import PIECE, pieces


class Token(NamedTuple):
    """An id, and the characters start .. end - 1 that it stands for."""

    id: int
    start: int
    end: int


class OffsetEncoder:
    """Gives the ids that transformers gives for the same text.

    read, plain: the tokenizer, with special tokens and with their names as letters. inside_read,
    inside: both for the middle of a text, where no space is added. fast: a faster `plain`, which
    needs `bytes_of` an id to know its place.
    """

    def __init__(
        self,
        read: tokenizers.Tokenizer,
        plain: tokenizers.Tokenizer,
        inside_read: tokenizers.Tokenizer,
        inside: tokenizers.Tokenizer,
        fast: Callable[[str], list[int]] | None,
        bytes_of: Callable[[int], bytes],
    ) -> None:
        self._read, self._plain, self._inside_read, self._inside = read, plain, inside_read, inside
        self._fast, self._bytes_of = fast, bytes_of
        added = read.get_added_tokens_decoder().items()
        special = {id: token for id, token in added if token.special}
        self._ids = {token.content: id for id, token in special.items()}
        self._specials = any_of(self._ids)
        # Between special tokens the text can be read alone, unless they change what is around them.
        self._divisible = inside is plain and not any(
            token.lstrip or token.rstrip or token.single_word
            or (token.normalized and read.normalizer is not None)
            for token in special.values()
        )  # fmt: skip

    def encode(self, text: str, letters: Collection[int] = ()) -> list[Token]:
        """The tokens of a text. letters: where names of special tokens start that are letters."""
        names = [(found.start(), found.end()) for found in self._specials.finditer(text)]
        if not self._divisible:
            return list(self._whole(text, [name for name in names if name[0] in letters]))
        found, end = list[Token](), 0
        for start, stop in (name for name in names if name[0] not in letters):
            found += self._between(text[end:start], end)
            found.append(Token(self._ids[text[start:stop]], start, stop))
            end = stop
        return found + list(self._between(text[end:], end))

    def _whole(self, text: str, letters: Sequence[tuple[int, int]]) -> Iterator[Token]:
        """With the library's own treatment of special tokens, except where a name is letters."""
        cuts = [0, *(place for name in letters for place in name), len(text)]
        for number, (start, end) in enumerate(pairwise(cuts)):
            first = self._read if start == 0 else self._inside_read
            inner = self._inside if number % 2 else first
            if start < end:
                yield from _tokens(inner, text[start:end], start)

    def _between(self, text: str, place: int) -> Iterator[Token]:
        for piece in pieces(text, PIECE) if text else ():
            if self._fast is None:
                yield from _tokens(self._plain, piece, place)
            else:
                ids = self._fast(piece)
                ends = list(accumulate(len(self._bytes_of(id)) for id in ids))
                yield from self._placed(ids, ends, piece, place)
            place += len(piece)

    def _placed(self, ids: list[int], ends: list[int], text: str, place: int) -> Iterator[Token]:
        """Places in characters from the ends in bytes."""
        if text.isascii():
            for id, start, end in zip(ids, [0, *ends], ends, strict=False):
                yield Token(id, place + start, place + end)
            return
        starts = list(accumulate((len(letter.encode()) for letter in text), initial=0))
        for id, start, end in zip(ids, [0, *ends], ends, strict=False):
            first, last = bisect_right(starts, start) - 1, bisect_right(starts, end - 1)
            yield Token(id, place + first, place + last)


def _tokens(inner: tokenizers.Tokenizer, text: str, place: int) -> Iterator[Token]:
    found = inner.encode(text, add_special_tokens=False)
    for id, (start, end) in zip(found.ids, found.offsets, strict=True):
        yield Token(id, place + start, place + end)


def any_of(names: Collection[str]) -> re.Pattern[str]:
    """Finds the longest of some names at each place."""
    by_length = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, by_length)) or "(?!)")
