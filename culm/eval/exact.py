"""Share of questions answered exactly, with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.transformer import Transformer
from culm.task.task import Question, Task
from culm.tokenizer.chat import Chat
from culm.tokenizer.tokenizer import Tokenizer

SLOTS = 64  # questions that are answered at once


@dataclass(frozen=True)
class Score:
    """A share of `items` and the 95 % interval in which the true share lies (Wilson)."""

    value: float
    low: float
    high: float
    items: int


def wilson(successes: float, items: int, z: float = 1.96) -> Score:
    """Wilson's score interval: honest near 0 and 1, where the normal one is not.

    >>> wilson(9, 10)     # 0.9, between 0.596 and 0.982
    """
    share = successes / items
    centre = share + z * z / (2 * items)
    spread = z * math.sqrt(share * (1 - share) / items + z * z / (4 * items * items))
    scale = 1 + z * z / items
    return Score(
        share, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale), items
    )


@dataclass(frozen=True)
class Answered:
    """One question with the model's reply and its score."""

    task: str
    question: Question
    reply: str
    score: float


def answer(
    model: Transformer,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    questions: int,
    seed: int,
    tokens: int = 32,
) -> list[Answered]:
    """Greedy replies to `questions` test questions of each task, in order of the tasks."""
    asked = [(t, t.question("test", i, seed)) for t in tasks for i in range(questions)]
    chat = Chat(tokenizer)
    requests = [
        Request(
            tuple(chat.prompt([{"role": "user", "content": question.prompt}])),
            tokens,
            Sampling(temperature=0.0),
            tokenizer.stop_ids,
        )
        for _, question in asked
    ]
    longest = max(len(request.prompt) for request in requests) + tokens
    completions = Engine(model, SLOTS, longest).generate(requests)
    answered = []
    for (task, question), completion in zip(asked, completions, strict=True):
        reply = tokenizer.decode(completion.tokens)
        answered.append(Answered(task.name, question, reply, task.score(question, reply)))
    return answered


def scores(answered: Sequence[Answered]) -> dict[str, Score]:
    """Exact match of each task, and of `all` of them."""
    groups: dict[str, list[float]] = {}
    for item in answered:
        groups.setdefault(item.task, []).append(item.score)
    table = {name: wilson(sum(group), len(group)) for name, group in groups.items()}
    table["all"] = wilson(sum(item.score for item in answered), len(answered))
    return table
