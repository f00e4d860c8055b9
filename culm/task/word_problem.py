"""Word problems of several steps, in the manner of GSM8K (arXiv 2110.14168)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from culm.config import Config
from culm.task.task import Question, Split, exact, first_of, generator

NAMES = "Ada Ben Cleo Dan Eva Finn Gia Hugo Ida Jon".split()
THINGS = "apples books coins eggs marbles pens shells stamps stones tickets".split()
GAINS = ("{name} buys N more.", "{name} finds N more.", "{other} gives {name} N more.")
LOSSES = ("{name} loses N.", "{name} sells N.", "{name} gives {other} N.")


class Change(NamedTuple):
    """One step of a story. sentence: with {name} and {other}. working: such as `7+3=10`. total: how
    many there are afterwards.
    """

    sentence: str
    working: str
    total: int


class WordProblem(Config):
    """How many things somebody has, after some were bought, lost, given away or doubled.

    name: in the results. steps: how often the number changes. largest: number to start with, and to
    add or take away; bags are 2 to 5, with at most 9 things in each.

    worked: share of the replies that show their working, as in arithmetic.
    """

    kind: Literal["word_problem"] = "word_problem"
    name: str = "word problems"
    steps: int = Field(2, ge=1, le=6)
    largest: int = Field(20, ge=2, le=99)
    worked: float = Field(1.0, ge=0, le=1)

    def question(self, split: Split, index: int, seed: int) -> Question:
        rng = generator(self.name, split, index, seed)
        sentences, working, total = first_of(split, self.name, lambda: self._story(rng), _sums)
        shown = working if rng.random() < self.worked else ""
        return Question(sentences, str(total), shown)

    def _story(self, rng: random.Random) -> tuple[str, str, int]:
        """The question, its working, and the answer."""
        (name, other), things = rng.sample(NAMES, 2), rng.choice(THINGS)
        total = rng.randint(1, self.largest)
        sentences, working = [f"{name} has {total} {things}."], []
        for _ in range(self.steps):
            change = self._change(rng, total)
            sentences.append(change.sentence.format(name=name, other=other))
            working.append(change.working)
            total = change.total
        sentences.append(f"How many {things} does {name} have now?")
        return " ".join(sentences), ", ".join(working), total

    def _change(self, rng: random.Random, total: int) -> Change:
        kind = rng.choice(("gain", "gain", "loss", "loss", "bags", "double"))
        if kind == "bags":
            bags, each = rng.randint(2, 5), rng.randint(2, 9)
            n = bags * each
            sentence = f"{{name}} gets {bags} bags with {each} in each."
            return Change(sentence, f"{bags}*{each}={n}, {total}+{n}={total + n}", total + n)
        if kind == "double":
            return Change("Then the number doubles.", f"2*{total}={2 * total}", 2 * total)
        if kind == "loss" and total > 0:
            n = rng.randint(1, min(total, self.largest))
            return Change(_one_of(rng, LOSSES, n), f"{total}-{n}={total - n}", total - n)
        n = rng.randint(1, self.largest)
        return Change(_one_of(rng, GAINS, n), f"{total}+{n}={total + n}", total + n)

    def score(self, question: Question, reply: str) -> float:
        return exact(question.answer, reply)


def _sums(story: tuple[str, str, int]) -> str:
    """The same sums are in the same split, whoever has what."""
    return story[1]


def _one_of(rng: random.Random, sentences: Sequence[str], number: int) -> str:
    return rng.choice(sentences).replace("N", str(number))
