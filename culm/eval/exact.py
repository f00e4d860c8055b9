"""Share of questions answered exactly, and by how much two models differ, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from culm.engine.engine import Engine
from culm.engine.sampling import Sampling
from culm.model.transformer import Transformer
from culm.task.task import Question, Task
from culm.text.reply import request_of
from culm.tokenizer.tokenizer import Tokenizer

SLOTS = 64  # questions that are answered at once
DRAWS = 20  # for each question that is wanted: then a task is taken to have no other ones
RESAMPLES = 10_000


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
    """One question with the model's reply, its score, and how many tokens the reply has."""

    task: str
    question: Question
    reply: str
    score: float
    tokens: int


def distinct(task: Task, questions: int, seed: int) -> list[Question]:
    """Test questions of which no two ask the same: a repeated one would count as evidence twice."""
    found: dict[str, Question] = {}
    for index in range(DRAWS * questions):
        question = task.question("test", index, seed)
        found.setdefault(question.prompt, question)
        if len(found) == questions:
            break
    return list(found.values())


def answer(
    model: Transformer,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    questions: int,
    seed: int,
    tokens: int,
) -> list[Answered]:
    """Greedy replies, of at most `tokens`, to test questions of each task, in order of the tasks.

    questions: how many different ones of each; fewer where the task has no more.
    """
    asked = [(task, question) for task in tasks for question in distinct(task, questions, seed)]
    requests = [
        request_of(
            question.prompt, tokenizer, tokens, model.config.context, Sampling(temperature=0.0)
        )
        for _, question in asked
    ]
    longest = max(len(request.prompt) + request.max_tokens for request in requests)
    engine = Engine(model, SLOTS, longest, vocabulary=tokenizer.vocabulary)
    completions = engine.generate(requests)
    answered = []
    for (task, question), completion in zip(asked, completions, strict=True):
        reply = tokenizer.decode(completion.tokens)
        score = task.score(question, reply)
        answered.append(Answered(task.name, question, reply, score, len(completion.tokens)))
    return answered


def scores(answered: Sequence[Answered]) -> dict[str, Score]:
    """Exact match of each task, and of `all` of them."""
    groups: dict[str, list[float]] = {}
    for item in answered:
        groups.setdefault(item.task, []).append(item.score)
    table = {name: wilson(sum(group), len(group)) for name, group in groups.items()}
    table["all"] = wilson(sum(item.score for item in answered), len(answered))
    return table


@dataclass(frozen=True)
class Difference:
    """A mean difference of scores over `items` questions, and its 95 % interval."""

    value: float
    low: float
    high: float
    items: int


def difference(ours: Sequence[Answered], theirs: Sequence[Answered], seed: int = 0) -> Difference:
    """How much better one model answered the same questions than another, from -1 to 1.

    Paired bootstrap (Efron and Tibshirani 1993; for language models Koehn 2004, W04-3250): whole
    questions are drawn again and again with both models' scores, so what makes a question hard for
    both does not widen the interval. If 0 lies outside it, the models differ.

    Raises:
        ValueError: the two did not answer the same questions in the same order.
    """
    if [(a.task, a.question) for a in ours] != [(b.task, b.question) for b in theirs] or not ours:
        raise ValueError("ours, theirs: they are not answers to the same questions")
    gains = np.array([a.score - b.score for a, b in zip(ours, theirs, strict=True)])
    drawn = np.random.default_rng(seed)
    means = [drawn.choice(gains, len(gains)).mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return Difference(float(gains.mean()), float(low), float(high), len(gains))
