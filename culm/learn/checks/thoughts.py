"""Exercises of lesson 10a: continuous thoughts."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from culm.concept.thoughts import thoughts as library_thoughts
from culm.learn.dialogues import padded
from culm.learn.exercise import Exercise, Mistake
from culm.learn.practice import small
from culm.model.attention.gqa import GQA
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.coconut import Coconut
from culm.objective.coconut import staged as library_staged


@cache
def _model() -> Transformer:
    return small(GQA(heads=2), width=16, layers=1).build(0).eval()


@torch.no_grad()
def embed(tokens: Tensor) -> Tensor:
    """(T,) -> (T, E), with the model of this exercise."""
    return _model().embed(tokens)


@torch.no_grad()
def states(vectors: Tensor) -> Tensor:
    """(T, E) -> (T, E): the last states of the model if it reads these vectors."""
    count = len(vectors)
    given = torch.ones(1, count, dtype=torch.bool), vectors[None]
    context = Context(torch.arange(count)[None], embeddings=given)
    return _model().hidden(torch.zeros(1, count, dtype=torch.long), context)[0]


def thoughts(embed, states, tokens: Tensor, count: int) -> Tensor:
    return library_thoughts(_model(), tokens, count)


def thoughts_answer(embed, states, tokens: Tensor, count: int) -> Tensor:
    vectors, found = embed(tokens), []
    for _ in range(count):
        found.append(states(vectors)[-1])
        vectors = torch.cat((vectors, found[-1][None]))
    return torch.stack(found)


def _thoughts_of_question(embed, states, tokens: Tensor, count: int) -> Tensor:
    return states(embed(tokens))[-1].expand(count, -1)


def _thoughts_replace(embed, states, tokens: Tensor, count: int) -> Tensor:
    vectors, found = embed(tokens), []
    for _ in range(count):
        found.append(states(vectors)[-1])
        vectors = torch.cat((vectors[:-1], found[-1][None]))
    return torch.stack(found)


BOT, LATENT, EOT = 97, 98, 99  # the last rows of a vocabulary of 100
Steps = list[list[int]]


def staged(question: list[int], steps: Steps, answer: list[int], stage: int) -> list[int]:
    parts = [question, *steps, answer]
    ids = [token for part in parts for token in part]
    ends = [place == len(part) - 1 for part in parts for place in range(len(part))]
    config = Coconut(stages=len(steps) + 1)
    batch = library_staged(padded([(ids, ends)]), config, stage, EOT + 1)
    return [token for token in batch.tokens[0].tolist() if token or token in ids]


def staged_answer(question: list[int], steps: Steps, answer: list[int], stage: int) -> list[int]:
    left = [token for step in steps[stage:] for token in step]
    return [*question, BOT, *[LATENT] * stage, EOT, *left, *answer]


def _staged_from_the_end(
    question: list[int], steps: Steps, answer: list[int], stage: int
) -> list[int]:
    left = [token for step in steps[: len(steps) - stage] for token in step]
    return [*question, BOT, *[LATENT] * stage, EOT, *left, *answer]


def _staged_without_latents(
    question: list[int], steps: Steps, answer: list[int], stage: int
) -> list[int]:
    left = [token for step in steps[stage:] for token in step]
    return [*question, BOT, EOT, *left, *answer]


EXERCISES = (
    Exercise(
        "thoughts.thoughts",
        "Append the last state to what the model reads, `count` times; give these states.",
        thoughts,
        lambda g: [(embed, states, torch.tensor([3, 5, 8]), 3),
                   (embed, states, torch.tensor([1]), 1)],
        thoughts_answer,
        (
            Mistake("each thought reads the ones before it.", _thoughts_of_question),
            Mistake("the question stays.", _thoughts_replace),
        ),
    ),
    Exercise(
        "thoughts.staged",
        "At stage n a thought each takes the place of the first n steps: question, 97, n times 98, "
        "99, the other steps, answer.",
        staged,
        lambda g: [([1, 2], [[3], [4, 5]], [6, 7], n) for n in (0, 1, 2)],
        staged_answer,
        (
            Mistake("the first steps go first.", _staged_from_the_end),
            Mistake("a thought takes the place of each.", _staged_without_latents),
        ),
    ),
)  # fmt: skip
