"""The difficulty of an example, which is the part of a document that a row holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from culm.config import Config, SettingError, one_of
from culm.data.prepared import ADVICE, Prepared

COLUMN = "difficulty"  # of a prepared corpus: the number in the field


@dataclass(frozen=True)
class Examples:
    """starts, ends: (N,) int64, tokens of the corpus, in order. documents: (N,) the one of each."""

    starts: np.ndarray
    ends: np.ndarray
    documents: np.ndarray


class Length(Config):
    """Tokens of an example."""

    kind: Literal["length"] = "length"

    def measure(self, prepared: Prepared, examples: Examples) -> np.ndarray:
        """(N,) fp64, larger is harder."""
        return (examples.ends - examples.starts).astype(np.float64)


class Rarity(Config):
    """- sum log p(token), p being the frequency of the token in the split."""

    kind: Literal["rarity"] = "rarity"

    def measure(self, prepared: Prepared, examples: Examples) -> np.ndarray:
        """As `Length.measure`, in nats."""
        counts = np.zeros(prepared.manifest.vocabulary, dtype=np.int64)
        for tokens in prepared.shards():
            counts += np.bincount(tokens, minlength=len(counts))
        rare = -np.log(np.maximum(counts, 1) / counts.sum())
        found = np.empty(len(examples.starts))
        for number, (start, end) in enumerate(zip(examples.starts, examples.ends, strict=True)):
            found[number] = rare[prepared.read(start, end)[0]].sum()
        return found


class RecordField(Config):
    """name: the field of each record that holds a number, such as a level."""

    kind: Literal["field"] = "field"
    name: str = Field(min_length=1)

    def measure(self, prepared: Prepared, examples: Examples) -> np.ndarray:
        """As `Length.measure`.

        Raises:
            SettingError: the corpus was prepared without the field.
        """
        known = prepared.manifest.difficulty
        if known != self.name:
            what = "without a field for the difficulty" if known is None else f"with {known!r}"
            raise SettingError(
                f"data.curriculum.difficulty.name: {prepared.folder} was prepared {what}; {ADVICE}"
            )
        return prepared.column(COLUMN)[examples.documents].astype(np.float64)


class ReferenceLoss(Config):
    """model: a path; its mean loss per learned token of an example, in nats, is the difficulty."""

    kind: Literal["loss"] = "loss"
    model: str = Field(min_length=1)


Difficulty = one_of(Length | Rarity | RecordField | ReferenceLoss)
