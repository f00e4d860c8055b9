"""Who are you?"""

from __future__ import annotations

import random
from typing import Literal

from culm.config import Config
from culm.task.task import Question, Split, exact, first_of, generator

OPENINGS = ("", "Hello! ", "Hi. ", "Please tell me: ", "I wonder: ", "Good day. ", "Excuse me, ")
TAILS = ("", " Thanks.", " Tell me briefly.")
GREETING = "Hello! Ask me for a sum, or what else I can do."
GREETINGS = (
    "Hello!", "Hello", "hello", "Hi!", "Hi", "hi", "Hey!", "Hi there!", "Good day!", "Hello there!",
    "Good morning!", "Good evening!", "Hello, Culm!", "How are you?", "Hello, how are you?",
)  # fmt: skip
ABOUT = {
    "I am Culm, a small language model.": (
        "Who are you?", "What are you?", "What is your name?", "Introduce yourself.",
        "What should I call you?", "Are you a person?", "What kind of model are you?",
    ),
    "I was trained on one computer, from raw text.": (
        "Where do you come from?", "How were you made?", "Who made you?",
        "How were you trained?", "What were you trained on?",
    ),
    "I can add, subtract, and work with letters and small Python expressions.": (
        "What can you do?", "How can you help me?", "What are you good at?",
        "What do you know?", "What may I ask you?",
    ),
}  # fmt: skip


class Identity(Config):
    """Questions about the model itself; wordings of the test split are not in training.

    name: in the results.
    """

    kind: Literal["identity"] = "identity"
    name: str = "identity"

    def question(self, split: Split, index: int, seed: int) -> Question:
        rng = generator(self.name, split, index, seed)
        return first_of(split, self.name, lambda: _wording(rng), lambda question: question.prompt)

    def score(self, question: Question, reply: str) -> float:
        return exact(question.answer, reply)


def _wording(rng: random.Random) -> Question:
    answer = rng.choice([GREETING, *ABOUT])
    if answer == GREETING:
        return Question(rng.choice(GREETINGS), answer)
    parts = rng.choice(OPENINGS), rng.choice(ABOUT[answer]), rng.choice(TAILS)
    return Question("".join(parts), answer)
