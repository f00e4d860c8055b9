"""MinHash signatures and locality-sensitive hashing in numpy (Broder 1997; Leskovec et al., Mining
of Massive Datasets, chapter 3).

The signature of a text has, for each of 128 permutations, the smallest hash of its runs of words.
Two texts agree in one with a probability that is their Jaccard similarity. Bands of a signature are
keys; only texts with a common key are compared.
"""

from __future__ import annotations

import numpy as np

from culm.data.words import FACTOR, SHIFT, hashes_of, runs_of, words_of

PERMUTATIONS = 128
FOUND = 0.99  # of the pairs at the threshold that have a key in common, at least
BLOCK = 512  # runs that are permuted at once, so that all products stay in the cache
RANDOM = np.random.Generator(np.random.PCG64(128))  # the same permutations everywhere
SCALES = RANDOM.integers(0, 1 << 32, PERMUTATIONS, dtype=np.uint32) | np.uint32(1)
OFFSETS = RANDOM.integers(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)
SMALL = np.uint32(0xFF)


def signature(text: str, length: int) -> np.ndarray | None:
    """(128,) uint32 of the runs of `length` words, or of all words if fewer. None: no words.

    A permutation is x -> a x + b modulo 2^32 with odd a, applied to hashes that are random already.
    """
    words = hashes_of(words_of(text))
    if not len(words):
        return None
    runs = (runs_of(words, min(length, len(words))) >> np.uint64(32)).astype(np.uint32)
    smallest = np.full(PERMUTATIONS, 0xFFFFFFFF, dtype=np.uint32)
    for start in range(0, len(runs), BLOCK):
        permuted = runs[start : start + BLOCK, None] * SCALES
        permuted += OFFSETS
        np.minimum(smallest, permuted.min(axis=0), out=smallest)
    return smallest


def rows_for(threshold: float) -> int:
    """Rows of a band: as many as find nearly all pairs at the threshold.

    With bands of r rows, a pair of similarity s has a key in common with probability
    1 - (1 - s^r)^(128 // r).
    """
    found = (
        rows
        for rows in range(PERMUTATIONS, 0, -1)
        if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= FOUND
    )
    return next(found, 1)


class Seen:
    """The units that were kept, to find near-duplicates of them among the next ones.

    threshold: Jaccard similarity from which on two units are near-duplicates, as their signatures
    estimate it (standard error 0.035 at 0.8).

    A key leads to every kept unit that has it, in sorted arrays whose sizes double. Memory is
    128 + 12 (128 // r) bytes for each kept unit, and at most twice that while arrays are merged:
    380 bytes with a threshold of 0.8 (r = 6), 4 GB for ten million.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._rows = rows_for(threshold)
        self._bands = PERMUTATIONS // self._rows
        # Eight bits of each smallest hash are enough to compare (b-bit minhash, 0910.3349).
        self._kept = np.zeros((1024, PERMUTATIONS), dtype=np.uint8)
        self._count = 0
        self._levels: list[tuple[np.ndarray, np.ndarray]] = []  # keys in order, units

    def seen(self, marks: np.ndarray) -> np.ndarray:
        """As `Index.seen`; marks: (n, 128) uint32 signatures."""
        keys = self._keys(marks)
        small = (marks & SMALL).astype(np.uint8)
        known = self._candidates(keys)
        places = np.full(len(marks), -1)  # of the units that are kept, among all that are
        among = _equal_before(keys)
        for row in range(len(marks)):
            before = [places[other] for other in among.get(row, ()) if places[other] >= 0]
            others = np.concatenate([known.get(row, np.zeros(0, np.int64)), before]).astype(
                np.int64
            )
            if not len(others) or not self._any_like(small[row], np.unique(others)):
                places[row] = self._keep(small[row])
        self._insert(keys, places)
        return places < 0

    def _keys(self, marks: np.ndarray) -> np.ndarray:
        """(n, bands) uint64, a hash of each band; equal bands at other places have other keys."""
        used = marks[:, : self._rows * self._bands].astype(np.uint64)
        parts = used.reshape(len(marks), self._bands, self._rows)
        keys = np.broadcast_to(np.arange(self._bands, dtype=np.uint64), parts.shape[:2]).copy()
        for row in range(self._rows):
            keys *= FACTOR
            keys += parts[:, :, row]
            keys ^= keys >> SHIFT
        return keys

    def _candidates(self, keys: np.ndarray) -> dict[int, np.ndarray]:
        """Kept units with a key in common with each of these, by row."""
        found: dict[int, list[np.ndarray]] = {}
        flat = keys.ravel()
        for known, units in self._levels:
            left = np.searchsorted(known, flat)
            hits = np.flatnonzero(known[np.minimum(left, len(known) - 1)] == flat)
            right = np.searchsorted(known, flat[hits], side="right")
            for hit, end in zip(hits.tolist(), right.tolist(), strict=True):
                found.setdefault(hit // self._bands, []).append(units[left[hit] : end])
        return {row: np.concatenate(parts) for row, parts in found.items()}

    def _any_like(self, small: np.ndarray, others: np.ndarray) -> bool:
        """Whether the estimate reaches the threshold; others agree in 8 bits once in 256."""
        equal = (self._kept[others] == small).mean(axis=1)
        return bool(((equal - 1 / 256) / (1 - 1 / 256)).max() >= self._threshold)

    def _keep(self, small: np.ndarray) -> int:
        if self._count == len(self._kept):
            self._kept = np.concatenate([self._kept, np.zeros_like(self._kept)])
        self._kept[self._count] = small
        self._count += 1
        return self._count - 1

    def _insert(self, keys: np.ndarray, places: np.ndarray) -> None:
        """Add the keys of kept units, and merge arrays until each is twice as long as the next."""
        fresh = keys[places >= 0].ravel()
        units = np.repeat(places[places >= 0], self._bands).astype(np.int32)
        if not len(fresh):
            return
        self._levels.append(_sorted(fresh, units))
        while len(self._levels) > 1 and len(self._levels[-2][0]) < 2 * len(self._levels[-1][0]):
            (more, others), (fewer, few) = self._levels.pop(-2), self._levels.pop()
            self._levels.append(
                _sorted(np.concatenate([more, fewer]), np.concatenate([others, few]))
            )


def _sorted(keys: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(keys, kind="stable")
    return keys[order], units[order]


def _equal_before(keys: np.ndarray) -> dict[int, set[int]]:
    """For each row, the rows before it that have a key in common with it."""
    flat = keys.ravel()
    order = np.argsort(flat, kind="stable")
    rows, ordered = order // keys.shape[1], flat[order]
    found: dict[int, set[int]] = {}
    group, last = list[int](), -2
    for at in np.flatnonzero(ordered[1:] == ordered[:-1]).tolist():
        if at != last + 1:  # another key
            group = [int(rows[at])]
        found.setdefault(int(rows[at + 1]), set()).update(group)
        group.append(int(rows[at + 1]))
        last = at
    return found
