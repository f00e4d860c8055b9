"""What an evaluation asks of a model, wherever it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from culm.engine.continuations import Likelihood
from culm.engine.sampling import Sampling
from culm.task.task import Option, Question


@dataclass(frozen=True)
class Generation:
    """How replies are made. max_tokens: of a reply. sampling: greedy, if nothing else is given.

    samples: replies to each question. first: the number of the first one; those of other numbers
    get other random numbers.
    """

    max_tokens: int = 32
    sampling: Sampling = Sampling(temperature=0.0)  # noqa: RUF009 - frozen
    samples: int = 1
    first: int = field(default=0, repr=False)  # repr: what an answer depends on


@dataclass(frozen=True)
class Reply:
    """Text without special tokens and what ends it. tokens: their number, an end included."""

    text: str
    tokens: int


class Responder(Protocol):
    """A model that answers: in this process, or behind an API."""

    def likelihoods(self, options: Sequence[Option]) -> list[Likelihood]:
        """How likely each continuation is after its context."""
        ...

    def replies(self, questions: Sequence[Question], how: Generation) -> list[list[Reply]]:
        """For each question, so many replies as are asked for."""
        ...
