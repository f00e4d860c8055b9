"""A game: find a number by guesses that are called too low or too high."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, PositiveInt

from culm.config import Config
from culm.task.task import Question, Split, exact, first_of, generator

LOWER, HIGHER = "It is lower.", "It is higher."
DIGITS = 9  # of a guess at most


class Guess(Config):
    """Each reply is a guess; the task says whether the number is lower or higher.

    name: in the results. largest: numbers are from 1 to it. guesses: how many there are; the game
    is won if the last one, or one before, is the number.
    """

    kind: Literal["guess"] = "guess"
    name: str = "guess"
    largest: int = Field(127, ge=100, le=9999)
    guesses: PositiveInt = 7

    def question(self, split: Split, index: int, seed: int) -> Question:
        rng = generator(self.name, split, index, seed)
        number = first_of(split, self.name, lambda: rng.randint(1, self.largest), str)
        return Question(f"Guess my number, from 1 to {self.largest}.", str(number))

    def follow(self, question: Question, replies: Sequence[str]) -> str | None:
        if len(replies) >= self.guesses or self.score(question, replies[-1]):
            return None
        said = _number(replies[-1])
        if said is None:
            return "This is no number."
        return LOWER if int(question.answer) < said else HIGHER

    def shown(self, question: Question) -> Sequence[str]:
        """Bisection, as long as it takes; a dialogue of too few guesses shows its first ones."""
        low, high, replies = 1, self.largest, list[str]()
        while len(replies) < self.guesses:
            middle = (low + high) // 2
            replies.append(str(middle))
            if middle == int(question.answer):
                break
            low, high = (middle + 1, high) if middle < int(question.answer) else (low, middle - 1)
        return replies

    def score(self, question: Question, reply: str) -> float:
        return max(exact(question.answer, reply), float(_number(reply) == int(question.answer)))


def _number(reply: str) -> int | None:
    """Also one with leading zeros, or in the digits of another script."""
    said = reply.strip()
    return int(said) if said.isdecimal() and len(said) <= DIGITS else None
