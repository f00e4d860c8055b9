"""Countdown: write an expression of given numbers that has a given value."""

from __future__ import annotations

import ast
import operator
import random
import re
from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import Field, model_validator

from culm.config import Config
from culm.task.task import Question, Split, first_of, generator

OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
VALUES = range(1, 100)
TRIED = 1000  # expressions, of which one at least must have such a value
WRITTEN = re.compile(r"[0-9 ()+*-]*")
LONGEST = 200  # characters of a reply; more are no expression of a few numbers


class Countdown(Config):
    """Expressions with +, - and *; any that uses each number once and has the value is right.

    name: in the results. numbers: how many an expression has. largest: of them; values are from 1
    to 99. signs: operators of the expressions that fine-tuning shows.
    """

    kind: Literal["countdown"] = "countdown"
    name: str = "countdown"
    numbers: int = Field(3, ge=2, le=6)
    largest: int = Field(30, ge=2, le=99)
    signs: str = Field("+-*", pattern=r"^[-+*]+$")

    @model_validator(mode="after")
    def _found(self) -> Countdown:
        rng = random.Random(0)
        if not any(self._expression(rng)[2] in VALUES for _ in range(TRIED)):
            raise ValueError(
                f"numbers: hardly any expression of {self.numbers} numbers up to {self.largest} "
                f"with signs={self.signs} has a value from 1 to 99; use fewer or smaller numbers, "
                "or other signs"
            )
        return self

    def question(self, split: Split, index: int, seed: int) -> Question:
        rng = generator(self.name, split, index, seed)
        solution, numbers, value = first_of(split, self.name, lambda: self._solved(rng), _content)
        given = ", ".join(map(str, rng.sample(numbers, len(numbers))))
        return Question(f"Make {value} from {given}.", solution, fields={"numbers": given})

    def _solved(self, rng: random.Random) -> tuple[str, list[int], int]:
        """An expression, its numbers, and its value, which is in VALUES."""
        while True:
            solved = self._expression(rng)
            if solved[2] in VALUES:
                return solved

    def _expression(self, rng: random.Random) -> tuple[str, list[int], int]:
        """The same with any value."""
        numbers = [rng.randint(1, self.largest) for _ in range(self.numbers)]
        parts = list(map(str, numbers))
        while len(parts) > 1:
            at = rng.randrange(len(parts) - 1)
            joined = f"{parts[at]}{rng.choice(self.signs)}{parts[at + 1]}"
            parts[at : at + 2] = [f"({joined})" if len(parts) > 2 else joined]
        found = evaluated(parts[0])
        assert found is not None
        return parts[0], numbers, found[0]

    def score(self, question: Question, reply: str) -> float:
        wanted = evaluated(question.answer)
        found = evaluated(reply.strip())
        return float(wanted is not None and wanted == found)


def _content(solved: tuple[str, list[int], int]) -> str:
    """The same numbers and value are in the same split in any order."""
    _, numbers, value = solved
    return f"{sorted(numbers)} {value}"


def evaluated(text: str) -> tuple[int, list[int]] | None:
    """The value of an expression and its sorted numbers; None if the text is not an expression."""
    # Python would read 0x1f and 1_0 too, and warn of others, such as 2or 3.
    if len(text) > LONGEST or not WRITTEN.fullmatch(text):
        return None
    try:
        tree = ast.parse(text, mode="eval").body
        numbers: list[int] = []
        return _value(tree, numbers), sorted(numbers)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _value(tree: ast.expr, numbers: list[int]) -> int:
    """Raises ValueError for all but whole numbers and the operators."""
    match tree:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            numbers.append(number)
            return number
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](_value(left, numbers), _value(right, numbers))
    raise ValueError("no expression")
