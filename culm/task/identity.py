"""Who are you?"""

from __future__ import annotations

from typing import Literal

from culm.config import Config
from culm.task.task import Question, Split, draw, exact, split_of

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
    """Questions about the model itself; wordings of the test split are not in training."""

    kind: Literal["identity"] = "identity"
    name: str = "identity"

    def question(self, split: Split, index: int, seed: int) -> Question:
        chance = draw(self.name, split, index, seed)
        while True:
            answer = chance.choice([GREETING, *ABOUT])
            if answer == GREETING:
                prompt = chance.choice(GREETINGS)
            else:
                parts = chance.choice(OPENINGS), chance.choice(ABOUT[answer]), chance.choice(TAILS)
                prompt = "".join(parts)
            if split_of(prompt) == split:
                return Question(prompt, answer)

    def score(self, question: Question, reply: str) -> float:
        return exact(question.answer, reply)
