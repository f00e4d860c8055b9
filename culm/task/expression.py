"""Small Python expressions: what does this give?"""

from __future__ import annotations

import random
from typing import Literal

from culm.config import Config
from culm.task.task import Question, Split, draw, exact, split_of


def _expression(chance: random.Random) -> tuple[str, object]:
    numbers = [chance.randint(0, 9) for _ in range(chance.randint(2, 4))]
    listed = "[" + ", ".join(map(str, numbers)) + "]"
    a, b = chance.randint(0, 9), chance.randint(0, 9)
    word = "".join(chance.choices("abcdef", k=2))
    index = chance.randrange(len(numbers))
    choices: list[tuple[str, object]] = [
        (f"len({listed})", len(numbers)),
        (f"max({listed})", max(numbers)),
        (f"min({listed})", min(numbers)),
        (f"{listed}[{index}]", numbers[index]),
        (f"{listed}[-1]", numbers[-1]),
        (f"{listed}[::-1]", numbers[::-1]),
        (f"sorted({listed})", sorted(numbers)),
        (f"{a} > {b}", a > b),
        (f"{a} in {listed}", a in numbers),
        (f"'{word}' * 2", word * 2),
    ]
    return chance.choice(choices)


class Expression(Config):
    """Lists of digits, comparisons, repeated strings; the answer is what Python prints."""

    kind: Literal["expression"] = "expression"
    name: str = "expression"

    def question(self, split: Split, index: int, seed: int) -> Question:
        chance = draw(self.name, split, index, seed)
        while True:
            code, value = _expression(chance)
            if split_of(code) == split:
                break
        form = chance.choice(["What does {} give?", "Python: {}", "Evaluate {}"])
        return Question(form.format(code), str(value))

    def score(self, question: Question, reply: str) -> float:
        return exact(question.answer, reply)
