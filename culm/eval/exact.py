"""Share of questions that are answered exactly, and how two models differ, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from culm.engine.sampling import Sampling
from culm.eval.answer import answer
from culm.model.transformer import Transformer
from culm.task.task import Question, Task, graded
from culm.text.reply import request_of
from culm.tokenizer.tokenizer import Tokenizer

TRIES = 20  # per distinct question; after that a task is taken to have no more
RESAMPLES = 10_000


@dataclass(frozen=True)
class Accuracy:
    """A share of `items`, and the 95 % interval that contains the true share (Wilson)."""

    value: float
    low: float
    high: float
    items: int


def wilson(successes: float, items: int, z: float = 1.96) -> Accuracy:
    """Wilson's score interval, which stays correct near 0 and 1 where the normal one does not.

    >>> wilson(9, 10)     # 0.9, between 0.596 and 0.982
    """
    share = successes / items
    centre = share + z * z / (2 * items)
    spread = z * math.sqrt(share * (1 - share) / items + z * z / (4 * items * items))
    scale = 1 + z * z / items
    # Rounding would put the bounds of 0 and 1 on the wrong side of the share.
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return Accuracy(share, max(0.0, min(low, share)), min(1.0, max(high, share)), items)


@dataclass(frozen=True)
class Answered:
    """A question with the model's reply, its score, and the length of the reply in tokens."""

    task: str
    question: Question
    reply: str
    score: float
    tokens: int


def distinct(tasks: Sequence[Task], questions: int, seed: int) -> list[tuple[Task, Question]]:
    """Test questions of each task, in order of the tasks; fewer if a task has no more.

    Prompts of a task differ: a question that is asked twice would count as evidence twice.
    """
    return [(task, question) for task in tasks for question in _distinct(task, questions, seed)]


def _distinct(task: Task, questions: int, seed: int) -> list[Question]:
    found: dict[str, Question] = {}
    for index in range(TRIES * questions):
        question = task.question("test", index, seed)
        found.setdefault(question.prompt, question)
        if len(found) == questions:
            break
    return list(found.values())


def answer_questions(
    model: Transformer,
    tokenizer: Tokenizer,
    asked: Sequence[tuple[Task, Question]],
    max_tokens: int,
) -> list[Answered]:
    """Greedy replies with their scores, in the order of the questions."""
    greedy, context = Sampling(temperature=0.0), model.config.context
    requests = [
        request_of(question.prompt, tokenizer, max_tokens, context, greedy) for _, question in asked
    ]
    return [
        Answered(
            task.name, question, reply.text, graded(task, question, reply.text),
            len(reply.completion.tokens),
        )
        for (task, question), reply in zip(asked, answer(model, tokenizer, requests), strict=True)
    ]  # fmt: skip


def accuracies(scores: Sequence[tuple[str, float]]) -> dict[str, Accuracy]:
    """Accuracy of each task, and of `all`; scores: pairs (task, score from 0 to 1)."""
    groups: dict[str, list[float]] = {}
    for task, score in scores:
        groups.setdefault(task, []).append(score)
    table = {name: wilson(sum(group), len(group)) for name, group in groups.items()}
    table["all"] = wilson(sum(score for _, score in scores), len(scores))
    return table


def accuracies_of(answered: Sequence[Answered]) -> dict[str, Accuracy]:
    """Accuracy of each task, and of `all`."""
    return accuracies([(item.task, item.score) for item in answered])


@dataclass(frozen=True)
class Difference:
    """A mean difference of scores over `items` questions, and its 95 % interval."""

    value: float
    low: float
    high: float
    items: int


def difference(ours: Sequence[Answered], theirs: Sequence[Answered], seed: int = 0) -> Difference:
    """How much better one model answered the same questions than another, from -1 to 1.

    Paired bootstrap (Efron and Tibshirani 1993; for language models Koehn 2004, W04-3250):
    questions are resampled together with both models' scores, so a question that is hard for both
    does not widen the interval. If 0 lies outside it, the models differ.

    Raises:
        ValueError: the two did not answer the same questions in the same order.
    """
    if [(a.task, a.question) for a in ours] != [(b.task, b.question) for b in theirs] or not ours:
        raise ValueError("ours, theirs: not answers to the same questions")
    gains = np.array([a.score - b.score for a, b in zip(ours, theirs, strict=True)])
    generator = np.random.default_rng(seed)
    means = [generator.choice(gains, len(gains)).mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return Difference(float(gains.mean()), float(low), float(high), len(gains))
