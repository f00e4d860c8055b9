"""Exercises of lesson 4a: optimizers and schedules of the learning rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from culm.learn.exercise import Exercise, Mistake, normal
from culm.optim import muon
from culm.optim.adamw import AdamWRule
from culm.optim.schedule import WSD, Cosine

Moments = tuple[Tensor, Tensor, Tensor]


def adamw(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, rate: float
) -> Moments:
    parameter = nn.Parameter(weight.clone(), requires_grad=False)
    state = {"step": torch.tensor(step - 1.0), "exp_avg": mean, "exp_avg_sq": square}
    group = {"lr": rate, "weight_decay": 0.1, "eps": 1e-8}
    AdamWRule((0.9, 0.95)).update(parameter, gradient, state, group)
    return parameter.detach(), state["exp_avg"], state["exp_avg_sq"]


def adamw_answer(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, rate: float
) -> Moments:
    mean = 0.9 * mean + 0.1 * gradient
    square = 0.95 * square + 0.05 * gradient.square()
    mean_now, square_now = mean / (1 - 0.9**step), square / (1 - 0.95**step)
    weight = weight * (1 - rate * 0.1) - rate * mean_now / (square_now.sqrt() + 1e-8)
    return weight, mean, square


def _adam_uncorrected(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, rate: float
) -> Moments:
    _, mean, square = adamw_answer(weight, gradient, mean, square, step, rate)
    return weight * (1 - rate * 0.1) - rate * mean / (square.sqrt() + 1e-8), mean, square


def _adam_without_decay(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, rate: float
) -> Moments:
    moved, mean, square = adamw_answer(weight, gradient, mean, square, step, rate)
    return moved + weight * rate * 0.1, mean, square


def cosine(step: int, steps: int, warmup: int, final: float) -> float:
    return Cosine(warmup=warmup / steps, final=final).factor(step, steps)


def cosine_answer(step: int, steps: int, warmup: int, final: float) -> float:
    if step < warmup:
        return (step + 1) / warmup
    through = (step - warmup) / (steps - warmup)
    return final + (1 - final) * (1 + math.cos(math.pi * through)) / 2


def _cosine_from_zero(step: int, steps: int, warmup: int, final: float) -> float:
    return step / warmup if step < warmup else cosine_answer(step, steps, warmup, final)


def _cosine_to_zero(step: int, steps: int, warmup: int, final: float) -> float:
    return cosine_answer(step, steps, warmup, 0.0)


def wsd(step: int, steps: int, warmup: int, decay: int) -> float:
    return WSD(warmup=warmup / steps, decay=decay / steps, final=0.0).factor(step, steps)


def wsd_answer(step: int, steps: int, warmup: int, decay: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    start = steps - decay
    if step < start:
        return 1.0
    return 1 - math.sqrt((step - start + 1) / (decay + 1))


def _wsd_linear(step: int, steps: int, warmup: int, decay: int) -> float:
    start = steps - decay
    if step < start:
        return wsd_answer(step, steps, warmup, decay)
    return 1 - (step - start + 1) / (decay + 1)


def orthogonalized(matrix: Tensor) -> Tensor:
    return muon.orthogonalize(matrix)


def orthogonalized_answer(matrix: Tensor) -> Tensor:
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def _orthogonalized_exactly(matrix: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


def _moments(g: torch.Generator, step: int) -> tuple:
    known = float(step > 1)  # both averages start at 0
    mean, square = known * normal(g, 4, 3) * 0.1, known * normal(g, 4, 3).square() * 0.01
    return normal(g, 4, 3), normal(g, 4, 3), mean, square, step, 0.01


EXERCISES = (
    Exercise(
        "optimizer.adamw",
        "Do one step of AdamW with betas 0.9 and 0.95, eps 1e-8 and weight decay 0.1; give the "
        "weight and both averages.",
        adamw,
        lambda g: [_moments(g, 1), _moments(g, 5)],
        adamw_answer,
        (
            Mistake(
                "the averages start at 0: divide by 1 - beta^step before they are used.",
                _adam_uncorrected,
            ),
            Mistake("the weight also shrinks, by rate * 0.1 of itself.", _adam_without_decay),
        ),
    ),
    Exercise(
        "optimizer.orthogonalized",
        "Push the singular values of a matrix towards 1 by five steps of Newton-Schulz.",
        orthogonalized,
        lambda g: [(normal(g, 4, 6),), (normal(g, 5, 5),)],
        orthogonalized_answer,
        (
            Mistake(
                "the formula gets near to 1, not exactly there: no SVD.", _orthogonalized_exactly
            ),
            Mistake(
                "divide by the norm of the matrix first.", lambda m: orthogonalized_answer(m) * 2
            ),
        ),
        tolerance=1e-3,
    ),
    Exercise(
        "optimizer.cosine",
        "Give the factor of the learning rate: a linear warm-up from 1 / warmup, half a cosine "
        "from 1 to `final`.",
        cosine,
        lambda g: [(0, 100, 10, 0.1), (9, 100, 10, 0.1), (10, 100, 10, 0.1), (77, 100, 10, 0.1)],
        cosine_answer,
        (
            Mistake("the first step must learn too: (step + 1) / warmup.", _cosine_from_zero),
            Mistake("it ends at `final`, not at 0.", _cosine_to_zero),
        ),
    ),
    Exercise(
        "optimizer.wsd",
        "Give the factor of warm-up, stable, decay: 1 in between, and 1 - sqrt(x) over the last "
        "steps, x = (steps into the decay + 1) / (decay + 1).",
        wsd,
        lambda g: [(0, 100, 10, 20), (50, 100, 10, 20), (80, 100, 10, 20), (99, 100, 10, 20)],
        wsd_answer,
        (Mistake("the decay is 1 - sqrt(x), not 1 - x.", _wsd_linear),),
    ),
)
