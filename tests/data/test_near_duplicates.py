"""Near-duplicates: signatures estimate the Jaccard similarity, and planted pairs are found."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest

from culm.data.clean.minhash import PERMUTATIONS, Seen, rows_for, signature
from culm.data.clean.near_duplicates import NearDuplicates
from culm.data.words import hashes_of, runs_of, words_of

WORDS = [
    f"{a}{b}{c}" for a in "bcdfglmnprst" for b in "aeiou" for c in ("nd", "rst", "lm", "x", "k")
]


def runs(words: list[str], length: int = 5) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}


def jaccard(a: list[str], b: list[str], length: int = 5) -> float:
    one, other = runs(a, length), runs(b, length)
    return len(one & other) / len(one | other)


def like(words: list[str], similarity: float, chance: random.Random) -> list[str]:
    """The same words, of which evenly spread ones are replaced until so much is in common."""
    # Each of n separate changes takes 5 of the w runs and adds 5: (w - 5n) / (w + 5n).
    total = len(words) - 4
    changes = round(total * (1 - similarity) / (1 + similarity) / 5)
    changed, offset = list(words), chance.random()
    for n in range(changes):
        changed[4 + int((n + offset) * (total - 4) / changes)] = f"other{chance.randrange(10**12)}"
    return changed


def signatures(texts: list[list[str]], length: int = 5) -> np.ndarray:
    return np.stack([signature(" ".join(words), length) for words in texts])


def test_agreement_is_the_similarity_without_bias() -> None:
    chance = random.Random(0)
    for similarity in (0.2, 0.5, 0.8, 0.95):
        errors = []
        for _ in range(60):
            words = chance.choices(WORDS, k=404)
            other = like(words, similarity, chance)
            exact = jaccard(words, other)
            assert exact == pytest.approx(similarity, abs=0.02)
            a, b = signatures([words, other])
            errors.append(float((a == b).mean()) - exact)
        deviation = math.sqrt(similarity * (1 - similarity) / PERMUTATIONS)
        assert abs(np.mean(errors)) < 4 * deviation / math.sqrt(60)
        assert np.std(errors) == pytest.approx(deviation, rel=0.35)


def test_bands_find_nearly_all_pairs_at_the_threshold() -> None:
    assert {t: (PERMUTATIONS // rows_for(t), rows_for(t)) for t in (0.5, 0.8, 0.9)} == {
        0.5: (42, 3), 0.8: (21, 6), 0.9: (12, 10),
    }  # fmt: skip
    for threshold in (0.1, 0.3, 0.7, 1.0):
        rows = rows_for(threshold)
        assert rows == 1 or 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= 0.99


@pytest.mark.parametrize(
    ("similarity", "least", "most"),
    [(0.3, 0, 0), (0.6, 0, 0), (0.7, 0, 0.03), (0.8, 0.2, 0.8), (0.9, 0.97, 1), (0.97, 1, 1)],
)
def test_planted_pairs(similarity: float, least: float, most: float) -> None:
    """At the threshold itself the estimate decides by chance; away from it nearly always right."""
    chance = random.Random(7)
    first = [chance.choices(WORDS, k=304) for _ in range(150)]
    second = [like(words, similarity, chance) for words in first]
    index = Seen(0.8)
    assert not index.seen(signatures(first)).any()
    found = index.seen(signatures(second)).mean()
    assert least <= found <= most


def test_order_and_batches_decide_nothing_else() -> None:
    chance = random.Random(3)
    texts: list[list[str]] = []
    for number in range(300):
        own = chance.choices(WORDS, k=120)
        texts.append(like(chance.choice(texts), 0.9, chance) if number % 3 == 2 else own)
    marks = signatures(texts)
    whole = Seen(0.8).seen(marks)
    assert 80 <= whole.sum() <= 100
    for size in (1, 7, 128):
        index = Seen(0.8)
        parts = [index.seen(marks[at : at + size]) for at in range(0, len(marks), size)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_only_what_was_kept_is_compared() -> None:
    """A chain of small changes: each is like the one before it, the last not like the first."""
    chance, chain = random.Random(5), [random.Random(4).choices(WORDS, k=300)]
    for _ in range(4):
        chain.append(like(chain[-1], 0.88, chance))
    assert all(jaccard(a, b) > 0.85 for a, b in pairwise(chain))
    seen = Seen(0.8).seen(signatures(chain))
    assert not seen[0]
    assert seen[1]
    kept = [words for words, known in zip(chain, seen, strict=True) if not known]
    assert len(kept) > 1
    assert all(jaccard(a, b) < 0.85 for a in kept for b in kept if a is not b)


def test_short_texts_and_other_scripts() -> None:
    step = NearDuplicates().build()
    assert step.marks(["... !"]) is None
    short = step.marks(["Hello, World"])
    assert short is not None
    assert np.array_equal(short, step.marks(["hello world!"]))
    assert not np.array_equal(short, step.marks(["hello there"]))
    assert words_of("橋を渡る river") == ["橋", "を", "渡", "る", "river"]


def test_memory_of_the_index_is_as_stated() -> None:
    chance = np.random.default_rng(0)
    index = Seen(0.8)
    for _ in range(8):
        marks = chance.integers(0, 1 << 32, (4096, PERMUTATIONS), dtype=np.uint32)
        assert not index.seen(marks).any()
    kept = index._count
    assert kept == 8 * 4096
    held = index._kept.nbytes + sum(keys.nbytes + units.nbytes for keys, units in index._levels)
    assert held == kept * 380


def test_hashes_of_runs_follow_the_words_alone() -> None:
    chance = random.Random(1)
    words = chance.choices(WORDS[:6], k=200)
    hashes = hashes_of(words)
    for length in range(1, 14):
        found = runs_of(hashes, length)
        parts = [tuple(words[at : at + length]) for at in range(len(words) - length + 1)]
        assert len(found) == len(parts)
        assert len(set(found.tolist())) == len(set(parts)) == len(set(zip(parts, found.tolist())))  # noqa: B905
    assert len(runs_of(hashes[:3], 5)) == 0
