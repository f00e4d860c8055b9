"""Training a SuperBPE vocabulary: tokens that may hold several words (arXiv 2503.13423).

    stage 1   byte-level BPE within words, as usual, up to a share of the vocabulary
    stage 2   further merges, which may cross spaces; digits and runs of punctuation stay separate

Texts are then split as in stage 2 alone, so the merges of stage 1 come first there too. A token has
at most `max_words` words and no colon, as in the authors' release.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import tokenizers
from pydantic import Field, PositiveInt
from tokenizers import decoders, models

from culm.source.pieces import PIECE, pieces
from culm.tokenizer.alphabet import spelt
from culm.tokenizer.patterns import DIGITS, Digits, splitter
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.train import BPE
from culm.tokenizer.trained import Trained

# Runs of punctuation, and spaces before other white space or the end of a text.
SEPARATE = r"| ?[^\s\p{L}\p{N}]{2,}[\r\n/]*| +(?!\S)"
BASE = 1 << 20  # more than any vocabulary has ids
NONE = -1  # between two texts: nothing is merged with it


class SuperBPE(Trained):
    """words: share of the merges that stay within words. digits: each is a token ("single"), or up
    to three may be ("grouped"). max_words: of a token. sample: bytes of text for the second stage,
    from the start of the texts.
    """

    kind: Literal["superbpe"] = "superbpe"
    words: float = Field(default=0.75, gt=0, lt=1)
    digits: Digits = "single"
    max_words: PositiveInt = 4
    sample: PositiveInt = 1 << 23

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """Memory grows with the sample and the number of distinct words."""
        kept = Sampled(texts, self.sample)
        merges = self.vocabulary - 256 - len(self.special_tokens)
        within = 256 + len(self.special_tokens) + max(1, round(merges * self.words))
        shared = {
            "chat": self.chat, "fim": self.fim, "specials": self.specials,
            "reserved": self.reserved,
        }  # fmt: skip
        first = BPE(vocabulary=within, digits=self.digits, **shared).build(kept)
        inner = self._weakly_split(first)
        pairs = Merger(inner, kept.texts, self.max_words).merges(self.vocabulary - first.vocabulary)
        return Tokenizer(self._with(inner, pairs), template=self.template)

    def _weakly_split(self, first: Tokenizer) -> tokenizers.Tokenizer:
        """The tokenizer of stage 1, which splits texts as stage 2 does."""
        inner = tokenizers.Tokenizer.from_str(first.json)
        inner.pre_tokenizer = splitter(DIGITS[self.digits] + SEPARATE)
        return inner

    def _with(
        self, inner: tokenizers.Tokenizer, pairs: Sequence[tuple[str, str]]
    ) -> tokenizers.Tokenizer:
        """The same with further merges; their tokens have the next ids."""
        vocabulary, merges = parts_of(inner)
        for pair in pairs:
            vocabulary.setdefault("".join(pair), len(vocabulary))
        made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[*merges, *pairs]))
        made.pre_tokenizer, made.decoder = inner.pre_tokenizer, decoders.ByteLevel()
        made.add_special_tokens(self.special_tokens)
        return made


class Sampled:
    """Texts in pieces, whose first `size` bytes stay in `texts`."""

    def __init__(self, texts: Iterable[str], size: int) -> None:
        self._texts, self._left = texts, size
        self.texts: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            for piece in pieces(text, PIECE):
                if self._left > 0:
                    self.texts.append(piece)
                    self._left -= len(piece.encode())
                yield piece


def parts_of(inner: tokenizers.Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary, special tokens included, and merges of a BPE."""
    model = json.loads(inner.to_str())["model"]
    return dict(inner.get_vocab()), [(a, b) for a, b in model["merges"]]


class Merger:
    """Finds the next merges of a text. Counts of pairs are kept; a merge changes those of its
    neighbours.
    """

    def __init__(self, inner: tokenizers.Tokenizer, texts: Sequence[str], max_words: int) -> None:
        self._max_words = max_words
        names = inner.get_vocab()
        self._names = sorted(names, key=names.__getitem__)
        self._spellings = [spelt(name) for name in self._names]
        rows = list[int]()
        for text in texts:
            for piece, _ in inner.pre_tokenizer.pre_tokenize_str(text):
                rows += [token.id for token in inner.model.tokenize(piece)]
                rows.append(NONE)
        self._tokens = np.array(rows, dtype=np.int64)
        self._counts: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []  # the count, negative, and key of pairs
        self._count(self._tokens[:-1], self._tokens[1:], 1)

    def merges(self, count: int) -> list[tuple[str, str]]:
        """This many, or fewer where no pair occurs twice."""
        found = list[tuple[str, str]]()
        while len(found) < count and (best := self._most_frequent()) is not None:
            left, right = best
            found.append((self._names[left], self._names[right]))
            self._names.append("".join(found[-1]))
            self._spellings.append(self._spellings[left] + self._spellings[right])
            self._merge(left, right, len(self._names) - 1)
        return found

    def _count(self, left: np.ndarray, right: np.ndarray, sign: int) -> None:
        """Add the pairs, or remove them."""
        there = (left != NONE) & (right != NONE)
        keys, counts = np.unique(left[there] * BASE + right[there], return_counts=True)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            total = self._counts.get(key, 0) + sign * count
            self._counts[key] = total
            heapq.heappush(self._heap, (-total, key))

    def _most_frequent(self) -> tuple[int, int] | None:
        """The pair that occurs most often and may be a token; the smaller ids if several do."""
        while self._heap:
            count, key = heapq.heappop(self._heap)
            if -count < 2:
                return None
            pair = key // BASE, key % BASE
            current = self._counts[key] == -count
            if current and self._allowed(self._spellings[pair[0]] + self._spellings[pair[1]]):
                return pair
        return None

    def _allowed(self, spelling: bytes) -> bool:
        return b":" not in spelling and len(spelling.split()) <= self._max_words

    def _merge(self, left: int, right: int, new: int) -> None:
        """Each such pair, from the left, becomes one new token."""
        starts = pairs_at(self._tokens, left, right)
        touched = np.zeros(len(self._tokens) - 1, dtype=bool)  # pairs with a token of these
        for shift in (-1, 0, 1):
            places = starts + shift
            touched[places[(places >= 0) & (places < len(touched))]] = True
        self._count(self._tokens[:-1][touched], self._tokens[1:][touched], -1)
        self._tokens[starts] = new
        self._tokens = np.delete(self._tokens, starts + 1)
        now = starts - np.arange(len(starts))
        touched = np.zeros(len(self._tokens) - 1, dtype=bool)
        for shift in (-1, 0):
            places = now + shift
            touched[places[(places >= 0) & (places < len(touched))]] = True
        self._count(self._tokens[:-1][touched], self._tokens[1:][touched], 1)


def pairs_at(tokens: np.ndarray, left: int, right: int) -> np.ndarray:
    """Where such pairs start that do not overlap, from the left."""
    starts = np.flatnonzero((tokens[:-1] == left) & (tokens[1:] == right))
    if left != right or not len(starts):
        return starts
    first = np.concatenate(([True], np.diff(starts) > 1))  # of a run, every second one
    run = starts[np.maximum.accumulate(np.where(first, np.arange(len(starts)), 0))]
    return starts[(starts - run) % 2 == 0]
