"""Exercises of lesson 2: sampling."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling, TokenSampler, invert, truncate
from culm.learn.exercise import Exercise, Mistake, normal
from culm.learn.practice import small
from culm.model.attention.gqa import GQA

NOTHING = float("-inf")


def temperature(logits: Tensor, value: float) -> Tensor:
    """The probabilities from which the library samples a row of logits (V,)."""
    if value == 0:
        sampler = TokenSampler([Sampling(temperature=0)], [0])
        token, _ = sampler(logits[None], [[]], [[]])
        return F.one_hot(token[0], len(logits)).float()
    return (logits / value).softmax(-1)


def temperature_answer(logits: Tensor, value: float) -> Tensor:
    if value == 0:
        best = torch.zeros_like(logits)
        best[logits.argmax()] = 1.0
        return best
    return (logits / value).softmax(-1)


def _times_temperature(logits: Tensor, value: float) -> Tensor:
    return (logits * value).softmax(-1) if value else temperature_answer(logits, 0)


def _temperature_after(logits: Tensor, value: float) -> Tensor:
    return logits.softmax(-1) / value if value else temperature_answer(logits, 0)


def top_k(logits: Tensor, k: int) -> Tensor:
    return truncate(logits[None], [Sampling(top_k=k)])[0]


def top_k_answer(logits: Tensor, k: int) -> Tensor:
    last = logits.topk(k).values[-1]
    return logits.masked_fill(logits < last, NOTHING)


def top_p(logits: Tensor, p: float) -> Tensor:
    return truncate(logits[None], [Sampling(top_p=p)])[0]


def top_p_answer(logits: Tensor, p: float) -> Tensor:
    shares, order = logits.softmax(-1).sort(descending=True)
    before = shares.cumsum(-1) - shares  # of the tokens that are more likely
    kept = logits.clone()
    kept[order[before >= p]] = NOTHING
    return kept


def _top_p_without_last(logits: Tensor, p: float) -> Tensor:
    shares, order = logits.softmax(-1).sort(descending=True)
    kept = logits.clone()
    kept[order[shares.cumsum(-1) > p]] = NOTHING
    return kept


def _least_p(logits: Tensor, p: float) -> Tensor:
    return logits.masked_fill(logits.softmax(-1) < p, NOTHING)


def sample(probabilities: Tensor, uniform: float) -> int:
    return int(invert(probabilities[None], torch.tensor([uniform], dtype=torch.float64))[0])


def sample_answer(probabilities: Tensor, uniform: float) -> int:
    sums = probabilities.double().cumsum(-1)
    return int((sums <= uniform * sums[-1]).sum())


Model = Callable[[Tensor], Tensor]


def generate(model: Model, prompt: list[int], count: int) -> list[int]:
    request = Request(tuple(prompt), count, Sampling(temperature=0))
    return list(Engine(model, 1, fused=False).generate([request])[0].tokens)  # type: ignore[arg-type]


@torch.no_grad()
def generate_answer(model: Model, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor([tokens]))[0, -1]
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


@torch.no_grad()
def _generate_of_last(model: Model, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens[-1:]]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def random_model() -> Model:
    """A tiny model with large weights, so that each token matters."""
    model = small(GQA(heads=2), width=16, layers=1).build(seed=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)
    return model


EXERCISES = (
    Exercise(
        "sampling.temperature",
        "Give the probabilities at a temperature: the softmax of logits / value, and at 0 all "
        "to the first of the largest.",
        temperature,
        lambda g: [(normal(g, 6), 0.5), (normal(g, 6), 2.0), (normal(g, 6), 0.0)],
        temperature_answer,
        (
            Mistake("divide: a low temperature makes differences larger.", _times_temperature),
            Mistake("the logits are divided, before the softmax.", _temperature_after),
        ),
    ),
    Exercise(
        "sampling.top_k",
        "Keep the k largest logits and set the others to -infinity.",
        top_k,
        lambda g: [(normal(g, 8), 3), (normal(g, 8), 1), (normal(g, 4), 4)],
        top_k_answer,
        (
            Mistake(
                "a logit of 0 has a probability; use -infinity.",
                lambda x, k: torch.where(x < x.topk(k).values[-1], 0.0, x),
            ),
            Mistake(
                "the k-th largest is kept too.",
                lambda x, k: x.masked_fill(x <= x.topk(k).values[-1], NOTHING),
            ),
        ),
    ),
    Exercise(
        "sampling.top_p",
        "Keep the fewest most likely tokens whose probabilities reach p, and set the others to "
        "-infinity.",
        top_p,
        lambda g: [(normal(g, 8), 0.7), (normal(g, 8), 0.05), (torch.tensor([3.0, 0.0, 0.0]), 0.9)],
        top_p_answer,
        (
            Mistake("the token that reaches p is kept too: at least one is.", _top_p_without_last),
            Mistake("p is for the sum of probabilities, not for each.", _least_p),
        ),
    ),
    Exercise(
        "sampling.sample",
        "Give the first token at which the running sum of probabilities exceeds the number.",
        sample,
        lambda g: [
            (torch.tensor([0.5, 0.25, 0.25]), 0.6),
            (torch.tensor([0.0, 1.0]), 0.0),
            (torch.tensor([0.5, 0.25, 0.25]), 0.5),
            (normal(g, 20).softmax(-1), 0.9),
        ],
        sample_answer,
        (
            Mistake("this takes the most likely token every time.", lambda p, u: int(p.argmax())),
            Mistake(
                "a token of probability 0 must not be sampled: the sum must be above the number.",
                lambda p, u: int((p.double().cumsum(-1) < u).sum()),
            ),
        ),
    ),
    Exercise(
        "sampling.generate",
        "Add the most likely next token `count` times, and give the new tokens.",
        generate,
        lambda g: [(random_model(), [72, 105], 6), (random_model(), [7], 1)],
        generate_answer,
        (
            Mistake(
                "the model must read all tokens so far, not the last alone.", _generate_of_last
            ),
            Mistake(
                "give the new tokens only.",
                lambda m, prompt, n: [*prompt, *generate_answer(m, prompt, n)],
            ),
        ),
    ),
)
