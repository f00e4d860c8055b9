"""Text of an earlier stage with the rows of a corpus, so that a model does not forget it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field, NonNegativeInt
from torch import Tensor

from culm.batch import Batch
from culm.config import Config, SettingError
from culm.data.loader import Loader


class Replay(Config):
    """corpus: a folder that `culm prepare` or an earlier run wrote, such as runs/pretrain/data.
    share: of the rows of a step that come from it. after: steps that come before the first with
        such rows. What was forgotten in them comes back in few steps, and costs them nothing.
    """

    corpus: Path
    share: float = Field(0.2, gt=0, lt=1)
    after: NonNegativeInt = 0

    def rows(self, batch_size: int, ranks: int) -> int:
        """How many of a step's rows, a multiple of the ranks.

        Raises:
            SettingError: a step has too few rows to share.
        """
        parts = batch_size // ranks
        if parts < 2:
            raise SettingError(
                f"data.replay: a step of {batch_size} rows on {ranks} ranks cannot be shared; "
                "raise train.batch_size"
            )
        return ranks * min(max(1, round(self.share * parts)), parts - 1)


@dataclass(frozen=True)
class Replayed:
    """Batches of a corpus, each with rows of another one after its own, but the first `after`."""

    corpus: Loader
    replay: Loader
    after: int = 0

    @property
    def remarks(self) -> list[str]:
        """Of both, a sentence each."""
        return [*self.corpus.remarks, *self.replay.remarks]

    @property
    def fingerprint(self) -> str:
        """Of the order of both."""
        facts = (self.corpus.fingerprint, self.replay.fingerprint, self.after)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of step `number` (from 0) for this rank."""
        few = self.corpus.rows_per_step
        whole, late = few + self.replay.rows_per_step, number - self.after
        if late < 0:
            return self.corpus.rows_from(number * whole, whole, number)
        own = self.corpus.rows_from(self.after * whole + late * few, few, number)
        others = self.replay.step(late)
        more = own[0].metrics  # the loop takes the mean over all micro-batches
        return [*own, *(replace(one, metrics=more) for one in others)]

    def state(self, steps: int) -> dict[str, Tensor]:
        """Nothing: a step is a function of its number."""
        return {}

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""
