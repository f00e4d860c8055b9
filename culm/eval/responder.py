"""The interface of a model under evaluation, in this process or behind an API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from culm.engine.continuations import Likelihood
from culm.engine.sampling import Sampling
from culm.seed import keyed_integer
from culm.task.task import Option, Question
from culm.text.reply import NoRoom

CUT = "options are longer than the model's context of {context} tokens and lose their beginning"


@dataclass(frozen=True)
class Generation:
    """How replies are made. max_tokens: of a reply. sampling: greedy, if nothing else is given.

    samples: replies to each question.
    """

    max_tokens: int = 32
    sampling: Sampling = Sampling(temperature=0.0)  # noqa: RUF009 - frozen
    samples: int = 1


@dataclass(frozen=True)
class Reply:
    """Text without special tokens and what ends it. tokens: their number, an end included."""

    text: str
    tokens: int


def reply_seed(seed: int, question: Question, sample: int = 0) -> int:
    """Of a reply: the same for each question, whichever others are asked with it. Questions with
    the same prompt have others, since their answers or the turns before differ.
    """
    return keyed_integer(
        seed, "reply", question.prompt, question.answer, repr(question.before), sample
    )


class Responder(Protocol):
    """A model that answers: in this process, or behind an API. notes: what could not be read whole,
    by a phrase.
    """

    @property
    def notes(self) -> Counter[str]: ...

    def likelihoods(self, options: Sequence[Option]) -> list[Likelihood]:
        """How likely each continuation is after its context."""
        ...

    def replies(
        self, questions: Sequence[Question], how: Generation
    ) -> Sequence[list[Reply] | NoRoom]:
        """For each question, as many replies as are asked for; or why there is no room for any."""
        ...
