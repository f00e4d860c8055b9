"""A task asks in text and scores a reply, for evaluation and as a reward."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from culm.config import SettingError
from culm.seed import keyed

T = TypeVar("T")
TRIES = 10_000  # one in eight belongs to the test split, so this is always enough
Split = Literal["train", "test"]
By = Literal["sum", "tokens", "bytes", "greedy"]


class Option(NamedTuple):
    """An answer to choose: how likely is its continuation after its context?"""

    context: str
    continuation: str


@dataclass(frozen=True)
class Question:
    """A prompt, and the answer that scores 1. fields: what else its record holds.

    working: steps that lead to the answer. Fine-tuning shows them before the answer, so that a
    small model learns in easy steps what it could not learn in one (arXiv 2307.03381).
    options: of which the model takes the most likely one; it writes a reply where there are none.
    right: the index of the right option. by: how they are compared: by the log-probability of a
    continuation (sum), that divided by its tokens or by its bytes, or (greedy, for a single
    option) whether its tokens are the most likely ones.
    plain: the prompt is a text to continue, not a message in the chat template. stops: texts that
    end a reply and are no part of it. before: messages before the prompt. tools: that the reply
    may call, as the chat template reads them. further: what the user says after each reply, in a
    dialogue of several turns.
    """

    prompt: str
    answer: str
    working: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    options: tuple[Option, ...] = ()
    right: int = 0
    by: By = "bytes"
    plain: bool = False
    stops: tuple[str, ...] = ()
    before: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    further: tuple[str, ...] = ()

    @property
    def messages(self) -> list[Mapping[str, Any]]:
        """The dialogue up to the reply."""
        return [*self.before, {"role": "user", "content": self.prompt}]

    @property
    def reply(self) -> str:
        """What fine-tuning shows: `7+5=12, 1+2+1=4: 42`."""
        return f"{self.working}: {self.answer}" if self.working else self.answer


class Task(Protocol):
    """Questions by number, without end; they may repeat, but train and test never share one."""

    @property
    def name(self) -> str: ...

    def question(self, split: Split, index: int, seed: int) -> Question:
        """A pure function of its arguments."""
        ...

    def score(self, question: Question, reply: str) -> float:
        """0 to 1; never raises, whatever the reply."""
        ...


Scored = tuple[Question, str]  # a question and the reply to score


@runtime_checkable
class Together(Protocol):
    """What a task has besides if it scores many replies faster together than one after another.

    Programs do: each takes a tenth of a second or more to start and to run, most of it waiting, so
    several run at the same time, in processes that are started once for all of them.
    """

    def score_together(self, given: Sequence[Scored]) -> list[float]:
        """The score of each reply, as `Task.score` gives it.

        Raises:
            SettingError: it can score none here, also where none is given.
        """
        ...


def generator(name: str, split: Split, index: int, seed: int) -> random.Random:
    """The random generator of one question."""
    return keyed(seed, name, split, index)


def split_of(key: str) -> Split:
    """Which split a question's content belongs to: one in eight is test, by hash.

    The key must not depend on wording or order, so that 17 + 25 and 25 + 17 stay together.
    """
    return "test" if hashlib.sha256(key.encode()).digest()[0] % 8 == 0 else "train"


def first_of(split: Split, name: str, sample: Callable[[], T], key: Callable[[T], str]) -> T:
    """The first sampled question that belongs to the split, by its key.

    Raises:
        SettingError: none of many does; the task has too few distinct questions.
    """
    for _ in range(TRIES):
        question = sample()
        if split_of(key(question)) == split:
            return question
    raise SettingError(f"tasks: {name} has no question for the {split} split; widen its range")


def exact(answer: str, reply: str) -> float:
    """1 if the reply is the answer, apart from white space and working before a colon."""
    return float(answer in (reply.strip(), reply.rsplit(": ", 1)[-1].strip()))


def graded(task: Task, question: Question, reply: str) -> float:
    """The score that a task gives to a reply.

    Raises:
        SettingError: it gives no number from 0 to 1, or fails.
    """
    return _graded(task, reply, lambda: task.score(question, reply))


def graded_together(task: Task, given: Sequence[Scored]) -> list[float]:
    """The scores that a task gives to replies.

    Raises:
        SettingError: as `graded`.
    """
    if not isinstance(task, Together):
        return [graded(task, question, reply) for question, reply in given]
    scores = task.score_together(given)
    return [
        _graded(task, reply, partial(float, score))
        for (_, reply), score in zip(given, scores, strict=True)
    ]


def _graded(task: Task, reply: str, scored: Callable[[], float]) -> float:
    try:
        score = scored()
        if 0 <= score <= 1:
            return float(score)
        reason = f"is {score}, not a number from 0 to 1"
    except SettingError:  # it says what to do
        raise
    except Exception as error:  # a task may be anyone's code
        reason = f"failed: {type(error).__name__}: {error}"
    raise SettingError(f"tasks: the score of {task.name} for the reply {reply[:40]!r} {reason}")
