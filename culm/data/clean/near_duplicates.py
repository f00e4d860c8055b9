"""Documents that are nearly the same as an earlier one."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt

from culm.data.clean.minhash import Seen, signature
from culm.data.clean.stage import Changes, Dropped, Index, Stage, Step


class NearDuplicates(Stage):
    """Drops what is like a document that was kept, by MinHash with 128 permutations.

    threshold: Jaccard similarity from which on two are near-duplicates, of their sets of runs of
        words.
    words: in a run; 5 as in FineWeb (arXiv 2406.17557), 13 in some other corpora.
    """

    kind: Literal["near_duplicates"] = "near_duplicates"
    threshold: float = Field(0.8, ge=0.1, le=1)
    words: PositiveInt = 5

    def build(self) -> Step:
        return _Signed(self.words)

    def index(self) -> Index:
        return Seen(self.threshold)


class _Signed(Step):
    def __init__(self, words: int) -> None:
        self._words = words

    def apply(self, texts: list[str], changes: Changes) -> list[str] | Dropped:
        return texts

    def marks(self, texts: list[str]) -> np.ndarray | None:
        return signature("\n".join(texts), self._words)
