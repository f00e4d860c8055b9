"""Work on short strings of letters: reverse, count, sort."""

from __future__ import annotations

import random
from typing import Literal

from pydantic import Field, model_validator

from culm.config import Config
from culm.task.task import Question, Split, exact, first_of, generator

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


class Letters(Config):
    """Letters with spaces between them, so that each is a token of its own, or without, so that a
    model has to know how its tokens are spelled.

    name: in the results. operation: what is asked. shortest, longest: count of the letters.
    spaces: between the letters.
    """

    kind: Literal["letters"] = "letters"
    name: str
    operation: Literal["reverse", "count", "sort"]
    shortest: int = Field(3, ge=2)
    longest: int = Field(6, ge=2)
    spaces: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> Letters:
        if self.shortest > self.longest:
            raise ValueError(f"shortest: {self.shortest} is more than longest={self.longest}")
        return self

    def question(self, split: Split, index: int, seed: int) -> Question:
        rng = generator(self.name, split, index, seed)
        letters = first_of(split, self.name, lambda: self._letters(rng), "".join)
        gap = " " if self.spaces else ""
        spaced = gap.join(letters)
        match self.operation:
            case "reverse":
                forms = [f"Reverse: {spaced}", f"Write {spaced} backwards."]
                return Question(rng.choice(forms), gap.join(reversed(letters)))
            case "sort":
                forms = [f"Sort: {spaced}", f"Put {spaced} in order."]
                return Question(rng.choice(forms), gap.join(sorted(letters)))
            case "count":
                one = rng.choice(letters)
                forms = [f"Count {one} in: {spaced}", f"How many {one} are in {spaced} ?"]
                return Question(rng.choice(forms), str(letters.count(one)))

    def _letters(self, rng: random.Random) -> list[str]:
        length = rng.randint(self.shortest, self.longest)
        # Few different letters when counting, so that the count is not always one.
        known = rng.sample(ALPHABET, 3) if self.operation == "count" else ALPHABET
        return rng.choices(known, k=length)

    def score(self, question: Question, reply: str) -> float:
        return exact(question.answer, reply)
