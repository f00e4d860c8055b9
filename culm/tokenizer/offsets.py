"""A text with special tokens to ids, each with its place in the text."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import tokenizers

from culm.source.pieces import PIECE, pieces


class Tokens(NamedTuple):
    """ids; token i stands for the characters starts[i] .. ends[i] - 1."""

    ids: list[int]
    starts: list[int]
    ends: list[int]


class OffsetEncoder:
    """Gives the ids that transformers gives for the same text.

    read, plain: the tokenizer, with special tokens and with their names as letters. inside_read,
    inside: both for the middle of a text, where no space is added. fast: a faster `plain`, which
    needs the number of bytes of each id (`sizes`) to know its place.
    """

    def __init__(
        self,
        read: tokenizers.Tokenizer,
        plain: tokenizers.Tokenizer,
        inside_read: tokenizers.Tokenizer,
        inside: tokenizers.Tokenizer,
        fast: Callable[[str], list[int]] | None,
        sizes: Callable[[], Sequence[int]],
    ) -> None:
        self._read, self._plain, self._inside_read, self._inside = read, plain, inside_read, inside
        self._fast, self._sizes = fast, sizes
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

    def encode(self, text: str, letters: Collection[int] = ()) -> Tokens:
        """The tokens of a text. letters: where names of special tokens start that are letters."""
        names = [(found.start(), found.end()) for found in self._specials.finditer(text)]
        if not self._divisible:
            return self._whole(text, [name for name in names if name[0] in letters])
        found, end = _none(), 0
        for start, stop in (name for name in names if name[0] not in letters):
            self._between(text[end:start], end, found)
            _append(found, [self._ids[text[start:stop]]], [start], [stop])
            end = stop
        self._between(text[end:], end, found)
        return found

    def _whole(self, text: str, letters: Sequence[tuple[int, int]]) -> Tokens:
        """With the library's own treatment of special tokens, except where a name is letters."""
        cuts, found = [0, *(place for name in letters for place in name), len(text)], _none()
        for number, (start, end) in enumerate(pairwise(cuts)):
            first = self._read if start == 0 else self._inside_read
            if start < end:
                _encode(self._inside if number % 2 else first, text[start:end], start, found)
        return found

    def _between(self, text: str, place: int, found: Tokens) -> None:
        for piece in pieces(text, PIECE) if text else ():
            if self._fast is None:
                _encode(self._plain, piece, place, found)
            else:
                ids = self._fast(piece)
                sizes = map(self._sizes().__getitem__, ids)
                bounds = list(accumulate(sizes, initial=0))  # in bytes
                starts, ends = bounds[:-1], bounds[1:]
                if not piece.isascii():
                    letters = list(accumulate((len(one.encode()) for one in piece), initial=0))
                    starts = [bisect_right(letters, start) - 1 for start in starts]
                    ends = [bisect_right(letters, end - 1) for end in ends]
                _append(found, ids, [place + one for one in starts], [place + one for one in ends])
            place += len(piece)


def _none() -> Tokens:
    return Tokens([], [], [])


def _append(found: Tokens, ids: list[int], starts: list[int], ends: list[int]) -> None:
    for have, more in zip(found, (ids, starts, ends), strict=True):
        have += more


def _encode(inner: tokenizers.Tokenizer, text: str, place: int, found: Tokens) -> None:
    encoded = inner.encode(text, add_special_tokens=False)
    starts, ends = ([place + one[i] for one in encoded.offsets] for i in (0, 1))
    _append(found, encoded.ids, starts, ends)


def any_of(names: Collection[str]) -> re.Pattern[str]:
    """Finds the longest of some names at each place."""
    by_length = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, by_length)) or "(?!)")
