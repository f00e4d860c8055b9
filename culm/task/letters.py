"""Work on short strings of letters: reverse, count, sort."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from culm.config import Config
from culm.task.task import Question, Split, draw, exact, split_of

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


class Letters(Config):
    """`longest` letters at most, written apart, so that a tokenizer sees each of them."""

    kind: Literal["letters"] = "letters"
    name: str
    operation: Literal["reverse", "count", "sort"]
    shortest: int = Field(3, ge=2)
    longest: int = Field(6, ge=2)

    def question(self, split: Split, index: int, seed: int) -> Question:
        chance = draw(self.name, split, index, seed)
        while True:
            length = chance.randint(self.shortest, self.longest)
            # Few different letters when counting, so that the count is not always one.
            known = chance.sample(ALPHABET, 3) if self.operation == "count" else ALPHABET
            letters = chance.choices(known, k=length)
            if split_of("".join(letters)) == split:
                break
        spaced = " ".join(letters)
        match self.operation:
            case "reverse":
                forms = [f"Reverse: {spaced}", f"Write {spaced} backwards."]
                return Question(chance.choice(forms), " ".join(reversed(letters)))
            case "sort":
                forms = [f"Sort: {spaced}", f"Put {spaced} in order."]
                return Question(chance.choice(forms), " ".join(sorted(letters)))
            case "count":
                one = chance.choice(letters)
                forms = [f"Count {one} in: {spaced}", f"How many {one} are in {spaced} ?"]
                return Question(chance.choice(forms), str(letters.count(one)))

    def score(self, question: Question, reply: str) -> float:
        return exact(question.answer, reply)
