"""Exercises of lesson 4a: byte-pair encoding."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from culm.learn.exercise import Exercise, Mistake
from culm.tokenizer.reference_bpe import ReferenceBPE, merged

Pair = tuple[bytes, bytes]

WORDS = ["low", "low", "lower", "lowest", "newest", "newest", "widest"]


def best_pair(words: list[str]) -> Pair:
    return ReferenceBPE.train(words, merges=1).merges[0]


def best_pair_answer(words: list[str]) -> Pair:
    counts: Counter[Pair] = Counter()
    for word in words:
        parts = [bytes([byte]) for byte in word.encode()]
        counts.update(pairwise(parts))
    return max(counts, key=lambda pair: (counts[pair], pair))


def _best_of_distinct(words: list[str]) -> Pair:
    return best_pair_answer(sorted(set(words)))


def _rarest_pair(words: list[str]) -> Pair:
    parts = [[bytes([byte]) for byte in word.encode()] for word in words]
    counts = Counter(pair for part in parts for pair in pairwise(part))
    return min(counts, key=lambda pair: (counts[pair], pair))


def merge(parts: list[bytes], pair: Pair) -> list[bytes]:
    return merged(parts, pair)


def merge_answer(parts: list[bytes], pair: Pair) -> list[bytes]:
    joined, at = list[bytes](), 0
    while at < len(parts):
        if at + 1 < len(parts) and (parts[at], parts[at + 1]) == pair:
            joined.append(parts[at] + parts[at + 1])
            at += 2
        else:
            joined.append(parts[at])
            at += 1
    return joined


def _merge_first(parts: list[bytes], pair: Pair) -> list[bytes]:
    for at, both in enumerate(pairwise(parts)):
        if both == pair:
            return [*parts[:at], both[0] + both[1], *parts[at + 2 :]]
    return parts


def _merge_from_right(parts: list[bytes], pair: Pair) -> list[bytes]:
    turned = merge_answer(parts[::-1], (pair[1], pair[0]))
    whole = pair[0] + pair[1]
    return [whole if part == pair[1] + pair[0] else part for part in turned[::-1]]


def encode(word: str, merges: list[Pair]) -> list[bytes]:
    tokenizer = ReferenceBPE(merges)
    return [tokenizer.pieces[id] for id in tokenizer.encode(word)]


def encode_answer(word: str, merges: list[Pair]) -> list[bytes]:
    parts = [bytes([byte]) for byte in word.encode()]
    for pair in merges:
        parts = merge_answer(parts, pair)
    return parts


def _encode_longest(word: str, merges: list[Pair]) -> list[bytes]:
    known = {a + b for a, b in merges} | {bytes([byte]) for byte in range(256)}
    rest, parts = word.encode(), list[bytes]()
    while rest:
        size = max(n for n in range(1, len(rest) + 1) if rest[:n] in known)
        parts, rest = [*parts, rest[:size]], rest[size:]
    return parts


MERGES = [(b"e", b"s"), (b"es", b"t"), (b"l", b"o"), (b"lo", b"w"), (b"e", b"r")]


EXERCISES = (
    Exercise(
        "bpe.best_pair",
        "Find the pair of neighbouring bytes that is most frequent in a list of words; of equally "
        "frequent ones the larger.",
        best_pair,
        lambda g: [(WORDS,), (["aab", "ab", "ba", "ba"],), (["xyz"],)],
        best_pair_answer,
        (
            Mistake("a word that occurs twice counts twice.", _best_of_distinct),
            Mistake("take the most frequent pair.", _rarest_pair),
        ),
    ),
    Exercise(
        "bpe.merge",
        "Join every occurrence of a pair of neighbours, from the left.",
        merge,
        lambda g: [
            ([b"n", b"e", b"s", b"t", b"e", b"s"], (b"e", b"s")),
            ([b"a", b"a", b"a"], (b"a", b"a")),
            ([b"a", b"b"], (b"b", b"a")),
        ],
        merge_answer,
        (
            Mistake("join every occurrence, not the first alone.", _merge_first),
            Mistake("begin at the left: a a a becomes aa a.", _merge_from_right),
        ),
    ),
    Exercise(
        "bpe.encode",
        "Cut a word into tokens: apply the merges in the order in which they were learned.",
        encode,
        lambda g: [
            ("lowest", MERGES),
            ("newer", MERGES),
            ("west", []),
            ("abcd", [(b"b", b"c"), (b"a", b"b"), (b"c", b"d")]),
        ],
        encode_answer,
        (
            Mistake("the earliest merge has priority, not the longest token.", _encode_longest),
            Mistake(
                "start with the first merge that was learned.",
                lambda word, merges: encode_answer(word, merges[::-1]),
            ),
        ),
    ),
)
