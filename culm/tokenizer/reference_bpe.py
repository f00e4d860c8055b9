"""Byte-level BPE in plain Python, to read and to check the fast one against (arXiv 1508.07909).

    text -> words, by a regular expression -> bytes -> merge the most frequent pair, again and again

Training counts each distinct word once, and after a merge visits only the words that contain it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from tokenizers import Regex, pre_tokenizers

from culm.tokenizer.alphabet import CHARACTERS
from culm.tokenizer.patterns import words_of

Pair = tuple[bytes, bytes]


def largest(pair: Pair, order: dict[bytes, int]) -> object:
    """Of pairs with the same count, the one with the larger bytes is merged."""
    return pair


def oldest(pair: Pair, order: dict[bytes, int]) -> object:
    """Of pairs with the same count, the one whose parts have smaller ids is merged, as in the
    `tokenizers` library, which numbers bytes by their printable characters.
    """
    return (-order[pair[0]], -order[pair[1]])


class ReferenceBPE:
    """Text to ids and back by merges, in their order.

    merges: pairs of tokens. pattern: as in `culm.tokenizer.patterns.words_of`. Ids are the 256
    bytes, then one for each merge.
    """

    def __init__(self, merges: Sequence[Pair], pattern: str = "gpt2") -> None:
        self.merges = list(merges)
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.pieces = [bytes([byte]) for byte in range(256)] + [a + b for a, b in self.merges]
        self.ids = {piece: id for id, piece in reversed(list(enumerate(self.pieces)))}
        self._words = word_splitter(pattern)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        merges: int,
        pattern: str = "gpt2",
        tie: Callable[[Pair, dict[bytes, int]], object] = largest,
        min_frequency: int = 1,
    ) -> ReferenceBPE:
        """Learn this many merges, or fewer where no pair is left. tie: what decides between pairs
        with the same count.
        """
        words_in = word_splitter(pattern)
        counts = Counter(word for text in texts for word in words_in(text))
        words = [([bytes([b]) for b in word.encode()], n) for word, n in counts.items()]
        pairs, places = Counter[Pair](), defaultdict[Pair, set[int]](set)
        for index, (parts, count) in enumerate(words):
            _count(parts, count, index, pairs, places)
        named = sorted(range(256), key=CHARACTERS.__getitem__)
        order, found = {bytes([byte]): id for id, byte in enumerate(named)}, list[Pair]()
        while len(found) < merges and pairs:
            best = max(pairs, key=lambda pair: (pairs[pair], tie(pair, order)))
            if pairs[best] < max(min_frequency, 1):
                break
            found.append(best)
            order.setdefault(best[0] + best[1], len(order))
            for index in list(places[best]):
                parts, count = words[index]
                _count(parts, -count, index, pairs, places)
                words[index] = (merged(parts, best), count)
                _count(words[index][0], count, index, pairs, places)
        return cls(found, pattern)

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return [id for word in self._words(text) for id in self._encode_word(word.encode())]

    def _encode_word(self, word: bytes) -> list[int]:
        parts = [bytes([byte]) for byte in word]
        while len(parts) > 1:
            first = min(pairwise(parts), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if first not in self.ranks:
                break
            parts = merged(parts, first)
        return [self.ids[part] for part in parts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.pieces[id] for id in ids).decode("utf-8", "replace")


def word_splitter(pattern: str) -> Callable[[str], list[str]]:
    """Splits a text into words; nothing is lost."""
    cuts = [pre_tokenizers.Split(Regex(each), "isolated") for each in words_of(pattern)]
    splits = pre_tokenizers.Sequence(list(cuts))
    return lambda text: [word for word, _ in splits.pre_tokenize_str(text)]


def merged(parts: Sequence[bytes], pair: Pair) -> list[bytes]:
    """The parts of a word with each such pair joined, from the left."""
    joined, place = list[bytes](), 0
    while place < len(parts):
        found = tuple(parts[place : place + 2]) == pair
        joined.append(pair[0] + pair[1] if found else parts[place])
        place += 1 + found
    return joined


def _count(
    parts: Sequence[bytes],
    count: int,
    index: int,
    pairs: Counter[Pair],
    places: defaultdict[Pair, set[int]],
) -> None:
    """Add the pairs of a word, or remove them where the count is negative."""
    for pair in pairwise(parts):
        pairs[pair] += count
        if count > 0:
            places[pair].add(index)
        else:
            places[pair].discard(index)
        if pairs[pair] == 0:
            del pairs[pair], places[pair]
