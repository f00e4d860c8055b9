"""A calculator as a tool: the model may have an expression computed, and then answers."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from culm.config import Config
from culm.task.countdown import evaluated
from culm.task.task import Question, Split, exact, first_of, generator

CALL = re.compile(r"calc\((.*)\)", re.DOTALL)


class Calculator(Config):
    """Addition, subtraction and multiplication of two numbers. A reply `calc(17*23)` is answered
    with the value; any other reply is the model's answer.

    name: in the results. smallest, largest: of the numbers. signs: of the expressions. calls: how
    often the tool may be called; after that a reply is the answer, whatever it is.
    """

    kind: Literal["calculator"] = "calculator"
    name: str = "calculator"
    smallest: int = Field(10, ge=0)
    largest: int = Field(99, ge=1, le=9999)
    signs: str = Field("+-*", pattern=r"^[-+*]+$")
    calls: PositiveInt = 2

    @model_validator(mode="after")
    def _ordered(self) -> Calculator:
        if self.smallest > self.largest:
            raise ValueError(f"smallest: {self.smallest} is more than largest={self.largest}")
        return self

    def question(self, split: Split, index: int, seed: int) -> Question:
        rng = generator(self.name, split, index, seed)
        asked = first_of(split, self.name, lambda: self._expression(rng), _content)
        found = evaluated(asked)
        assert found is not None
        return Question(f"What is {asked}?", str(found[0]), fields={"expression": asked})

    def _expression(self, rng: random.Random) -> str:
        a, b = (rng.randint(self.smallest, self.largest) for _ in range(2))
        return f"{a}{rng.choice(self.signs)}{b}"

    def follow(self, question: Question, replies: Sequence[str]) -> str | None:
        call = CALL.fullmatch(replies[-1].strip())
        if call is None or len(replies) > self.calls:
            return None
        found = evaluated(call[1].strip())
        return "This is no expression of whole numbers." if found is None else str(found[0])

    def shown(self, question: Question) -> Sequence[str]:
        return f"calc({question.fields['expression']})", question.answer

    def score(self, question: Question, reply: str) -> float:
        return exact(question.answer, reply)


def _content(expression: str) -> str:
    """17*23 and 23*17 are in the same split."""
    a, sign, b = re.split(r"([-+*])", expression)
    return f"{sign} {sorted([int(a), int(b)])}"
