"""Parts of known texts in other texts: runs of 13 words, as in GPT-3's report (arXiv 2005.14165,
appendix C), without case and punctuation.

The search for contaminated questions in an evaluation and the cleaning of a corpus share it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from culm.data.words import WORD, hashes_of, runs_of, words_of
from culm.task.file_task import SEPARATOR
from culm.task.task import Question

WORDS = 13  # in a row
MASK = np.uint64((1 << 22) - 1)  # of a table that answers for most runs that they are not known


def text_of(question: Question) -> str:
    """A question without its examples, with its right answer."""
    own = question.prompt.rpartition(SEPARATOR)[2]
    if len(WORD.findall(own)) < WORDS:
        own = question.prompt
    return f"{own} {question.answer}"


def parts_of(text: str, length: int = WORDS) -> set[str]:
    """Its runs of words; none if it has fewer words."""
    words = words_of(text)
    return {" ".join(words[at : at + length]) for at in range(len(words) - length + 1)}


class Overlap:
    """Finds known parts (`parts_of`) in texts."""

    def __init__(self, parts: Iterable[str], length: int = WORDS) -> None:
        self._parts, self._length = frozenset(parts), length
        words = [word for part in self._parts for word in part.split(" ")]
        self._hashes = np.sort(runs_of(hashes_of(words).reshape(-1, length), length)[:, 0])
        self._table = np.zeros(int(MASK) + 1, dtype=bool)
        self._table[self._hashes & MASK] = True

    def found_in(self, text: str) -> set[str]:
        """The parts that a text contains."""
        words = words_of(text)
        runs = runs_of(hashes_of(words), self._length)
        [places] = np.nonzero(self._table[runs & MASK])
        nearest = np.searchsorted(self._hashes, runs[places]) if len(places) else places
        nearest = np.minimum(nearest, len(self._hashes) - 1)
        places = places[self._hashes[nearest] == runs[places]]
        near = (" ".join(words[at : at + self._length]) for at in places.tolist())
        return {run for run in near if run in self._parts}
