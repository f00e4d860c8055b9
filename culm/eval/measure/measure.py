"""The base of every measure, and what it measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from culm.config import Config
from culm.eval.perplexity import HeldOutRows
from culm.model.transformer import Transformer
from culm.parallel.ranks import Ranks
from culm.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")


def no_rows() -> None:
    """The held-out rows of a model that is measured without a corpus."""


@dataclass(frozen=True)
class Subject:
    """The model that is measured, and what it is measured on.

    held_out: opens the rows that are not trained on; gives None if there are none.
    ranks: each measures a share; the results are the same on all of them.
    seed: of questions and of sampling.
    """

    model: Transformer
    tokenizer: Tokenizer
    held_out: Callable[[], HeldOutRows | None] = no_rows
    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen
    seed: int = 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this rank: every `ranks.count`-th."""
        return items[self.ranks.rank :: self.ranks.count]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over the ranks."""
        return self.ranks.sum(list(values), self.model.device)

    def join(self, values: Sequence[float], count: int) -> list[float]:
        """The numbers of all `count` items in order, from the numbers of this rank's share."""
        everyone = [0.0] * count
        everyone[self.ranks.rank :: self.ranks.count] = values
        return self.sum(everyone)


class MeasureConfig(Config, ABC):
    """The settings of a measure, which can also take it."""

    kind: str

    @property
    def last_step_only(self) -> bool:
        """Whether it is not taken while training, but after the last step."""
        return False

    def check(self, subject: Subject) -> None:
        """Asked before the first step, and by a plan: whether `measure` will be possible.

        The model may be on the meta device.

        Raises:
            ValueError: it will not, and why.
        """
        return None

    @abstractmethod
    def measure(self, subject: Subject) -> dict[str, Any]:
        """Results by name, as JSON values; empty if the subject has nothing to measure.

        Every rank calls it and gets the same results. The model is gathered and in eval mode.
        """
