"""Small Python expressions: what does this give?"""

from __future__ import annotations

import random
from typing import Literal

from culm.config import Config
from culm.task.task import Question, Split, exact, first_of, generator


def _expression(rng: random.Random) -> tuple[str, object]:
    numbers = [rng.randint(0, 9) for _ in range(rng.randint(2, 4))]
    listed = "[" + ", ".join(map(str, numbers)) + "]"
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    word = "".join(rng.choices("abcdef", k=2))
    index = rng.randrange(len(numbers))
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
    return rng.choice(choices)


class Expression(Config):
    """Lists of digits, comparisons, repeated strings; the answer is what Python prints.

    name: in the results.
    """

    kind: Literal["expression"] = "expression"
    name: str = "expression"

    def question(self, split: Split, index: int, seed: int) -> Question:
        rng = generator(self.name, split, index, seed)
        code, value = first_of(split, self.name, lambda: _expression(rng), lambda pair: pair[0])
        form = rng.choice(["What does {} give?", "Python: {}", "Evaluate {}"])
        return Question(form.format(code), str(value))

    def score(self, question: Question, reply: str) -> float:
        return exact(question.answer, reply)
