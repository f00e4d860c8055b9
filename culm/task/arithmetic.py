"""Sums in digits and in words."""

from __future__ import annotations

import random
from typing import Literal

from pydantic import Field, model_validator

from culm.config import Config
from culm.task.task import Question, Split, exact, first_of, generator

UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int) -> str:
    """0 .. 999 in English: 142 is "one hundred forty-two"."""
    if number < 20:
        return UNITS[number]
    if number < 100:
        tens, unit = divmod(number, 10)
        return TENS[tens - 2] + (f"-{UNITS[unit]}" if unit else "")
    hundreds, rest = divmod(number, 100)
    return f"{UNITS[hundreds]} hundred" + (f" {in_words(rest)}" if rest else "")


def column_addition(a: int, b: int) -> str:
    """Digit by digit from the right, the carry last: 17 + 25 is `7+5=12, 1+2+1=4`."""
    steps: list[str] = []
    carry = 0
    while a or b or carry or not steps:
        parts = [a % 10, b % 10] + [carry] * bool(carry)
        steps.append(f"{'+'.join(map(str, parts))}={sum(parts)}")
        carry, a, b = sum(parts) // 10, a // 10, b // 10
        if carry and not (a or b):
            break
    return ", ".join(steps)


def column_subtraction(a: int, b: int) -> str:
    """Digit by digit from the right, borrowing ten: 42 - 17 is `12-7=5, 4-1-1=2`."""
    steps: list[str] = []
    borrow = 0
    while a or not steps:
        upper, lower = a % 10, b % 10 + borrow
        lent = 10 * (upper < lower)
        taken = f"-{borrow}" if borrow else ""
        steps.append(f"{upper + lent}-{b % 10}{taken}={upper + lent - lower}")
        borrow, a, b = int(lent > 0), a // 10, b // 10
    return ", ".join(steps)


class Arithmetic(Config):
    """a + b or a - b (never below zero), in digits or words.

    name: in the results. operation: plus or minus. smallest, largest: of the operands.
    words: whether numbers are written as words.

    worked: share of the replies that show their working; the others give the answer alone. A model
    tuned on both does either at random, until reinforcement learning finds that working pays.
    """

    kind: Literal["arithmetic"] = "arithmetic"
    name: str
    operation: Literal["+", "-"] = "+"
    smallest: int = Field(0, ge=0)
    largest: int = Field(99, ge=1, le=499)
    words: bool = False
    worked: float = Field(0.35, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Arithmetic:
        if self.smallest > self.largest:
            raise ValueError(f"smallest: {self.smallest} is more than largest={self.largest}")
        return self

    def question(self, split: Split, index: int, seed: int) -> Question:
        rng = generator(self.name, split, index, seed)
        a, b = first_of(split, self.name, lambda: self._operands(rng), _pair)
        if self.operation == "-":
            a, b = max(a, b), min(a, b)
        prompt = rng.choice(self._forms(a, b))
        added = self.operation == "+"
        working = column_addition(a, b) if added else column_subtraction(a, b)
        answer = self._number(a + b if added else a - b)
        return Question(prompt, answer, working if rng.random() < self.worked else "")

    def _operands(self, rng: random.Random) -> tuple[int, int]:
        return rng.randint(self.smallest, self.largest), rng.randint(self.smallest, self.largest)

    def _number(self, number: int) -> str:
        return in_words(number) if self.words else str(number)

    def _forms(self, a: int, b: int) -> list[str]:
        x, y = self._number(a), self._number(b)
        if self.operation == "+":
            sign = "plus" if self.words else "+"
            return [f"What is {x} {sign} {y}?", f"{x} {sign} {y} = ?", f"Add {x} and {y}."]
        sign = "minus" if self.words else "-"
        return [f"What is {x} {sign} {y}?", f"{x} {sign} {y} = ?", f"Subtract {y} from {x}."]

    def score(self, question: Question, reply: str) -> float:
        return exact(question.answer, reply)


def _pair(operands: tuple[int, int]) -> str:
    """The same pair is in the same split in either order, operation and spelling."""
    return f"{min(operands)} {max(operands)}"
