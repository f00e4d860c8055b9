"""The words of a text as numbers, so that runs of words are compared without strings.

A word is a run of letters and digits, in lower case. Where a script writes no spaces between words
(Chinese, Japanese), each character is one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache

import numpy as np

WORD = re.compile(r"[^\W_]+")
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
KNOWN = 1 << 20  # words whose hashes are kept, which bounds memory to about 150 MB
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses nothing
SHIFT = np.uint64(29)


class _Hashes(dict[str, int]):
    """The hash of each word, computed once; the same in every process and on every machine."""

    def __missing__(self, word: str) -> int:
        if len(self) >= KNOWN:
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self[word] = found = int.from_bytes(digest, "little")
        return found


_HASHES = _Hashes()


def words_of(text: str) -> list[str]:
    """Its words in order."""
    text = text.lower()
    if not text.isascii() and UNSPACED.search(text):
        text = UNSPACED.sub(r" \g<0> ", text)
    return WORD.findall(text)


def hashes_of(words: Sequence[str]) -> np.ndarray:
    """(words,) uint64, the hash of each word."""
    return np.fromiter(map(_HASHES.__getitem__, words), dtype=np.uint64, count=len(words))


def runs_of(hashes: np.ndarray, length: int) -> np.ndarray:
    """(..., words - length + 1) uint64, a hash of each run of this many words, if there are any.

    hashes: (..., words).
    """
    count = max(0, hashes.shape[-1] - length + 1)
    found, have = np.zeros((*hashes.shape[:-1], count), dtype=np.uint64), 0
    step, size = hashes, 1  # runs whose length doubles, of which the wanted ones are put together
    while count:
        if length & size:
            found = found * _power(size) + step[..., have : have + count]
            have += size
        if have == length:
            break
        step = step[..., :-size] * _power(size) + step[..., size:]
        size *= 2
    found ^= found >> SHIFT  # the low bits of a sum of products know too few of its terms
    found *= FACTOR
    found ^= found >> SHIFT
    return found


@cache
def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(int(FACTOR), exponent, 1 << 64))
