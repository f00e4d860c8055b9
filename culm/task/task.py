"""A task knows text and a score, and serves evaluation and reward alike."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from culm.config import SettingError
from culm.seed import keyed

T = TypeVar("T")
DRAWS = 10_000  # one in eight belongs to the test split, so more never are needed
Split = Literal["train", "test"]


@dataclass(frozen=True)
class Question:
    """What is asked, and the answer that scores 1.

    working: steps that lead to the answer. Fine-tuning shows them before it, so that a small model
    can learn in easy steps what it could not learn in one (arXiv 2307.03381).
    """

    prompt: str
    answer: str
    working: str = ""

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


def draw(name: str, split: Split, index: int, seed: int) -> random.Random:
    """The generator of one question."""
    return keyed(seed, name, split, index)


def split_of(key: str) -> Split:
    """Which split a question's content belongs to: one in eight is test, by hash.

    The key must not depend on wording or order, so that 17 + 25 and 25 + 17 stay together.
    """
    return "test" if hashlib.sha256(key.encode()).digest()[0] % 8 == 0 else "train"


def first_of(split: Split, name: str, draw: Callable[[], T], key: Callable[[T], str]) -> T:
    """The first drawn question that belongs to the split, by its key.

    Raises:
        SettingError: none of very many does; the task knows too few different questions.
    """
    for _ in range(DRAWS):
        drawn = draw()
        if split_of(key(drawn)) == split:
            return drawn
    raise SettingError(f"tasks: {name} has no question for the {split} split; widen its range")


def exact(answer: str, reply: str) -> float:
    """1 when the reply is the answer, working before a colon and white space at the ends aside."""
    return float(answer in (reply.strip(), reply.rsplit(": ", 1)[-1].strip()))
