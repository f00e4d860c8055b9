"""Exercises of lesson 4a: accumulation, mixed precision, clipping."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from culm.learn.exercise import Exercise, Mistake, normal
from culm.parallel.clip import Norm
from culm.parallel.clip import clip as library_clip
from culm.train.loss_scale import INTERVAL, LossScale


def accumulated(sums: list[float], counts: list[int]) -> float:
    return sum(sums) / sum(counts)


def _mean_of_means(sums: list[float], counts: list[int]) -> float:
    return sum(s / c for s, c in zip(sums, counts, strict=True)) / len(sums)


def next_scale(scale: float, row: int, norm: float) -> tuple[float, int]:
    loss_scale = LossScale()
    loss_scale.restore({"numbers": torch.tensor([scale, row, 0.0])})
    loss_scale.judge(1, norm)
    numbers = loss_scale.state()["numbers"].tolist()
    return numbers[0], int(numbers[1])


def next_scale_answer(scale: float, row: int, norm: float) -> tuple[float, int]:
    if not math.isfinite(norm):
        return scale / 2, 0
    if row + 1 == 2000:
        return scale * 2, 0
    return scale, row + 1


def _scale_grows_always(scale: float, row: int, norm: float) -> tuple[float, int]:
    return (scale * 2, 0) if math.isfinite(norm) else (scale / 2, 0)


def _scale_keeps_row(scale: float, row: int, norm: float) -> tuple[float, int]:
    return next_scale_answer(scale, row, norm) if math.isfinite(norm) else (scale / 2, row)


def clip(gradients: list[Tensor], limit: float) -> list[Tensor]:
    parameters = [nn.Parameter(torch.zeros_like(one)) for one in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    library_clip(parameters, limit, Norm())
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def clip_answer(gradients: list[Tensor], limit: float) -> list[Tensor]:
    norm = sum(float(one.square().sum()) for one in gradients) ** 0.5
    factor = min(1.0, limit / norm)
    return [one * factor for one in gradients]


def _clip_each(gradients: list[Tensor], limit: float) -> list[Tensor]:
    return [clip_answer([one], limit)[0] for one in gradients]


def _clip_elements(gradients: list[Tensor], limit: float) -> list[Tensor]:
    return [one.clamp(-limit, limit) for one in gradients]


def _clip_always(gradients: list[Tensor], limit: float) -> list[Tensor]:
    norm = sum(float(one.square().sum()) for one in gradients) ** 0.5
    return [one * limit / norm for one in gradients]


EXERCISES = (
    Exercise(
        "steps.accumulated",
        "Give the mean loss of a step from the sums and counts of its micro-batches.",
        accumulated,
        lambda g: [([10.0, 300.0], [10, 100]), ([5.0], [2]), ([0.0, 6.0], [1, 3])],
        None,
        (
            Mistake(
                "a mean of means weighs a short micro-batch like a long one.",
                _mean_of_means,
            ),
            Mistake(
                "divide by the targets, not by the micro-batches.", lambda s, c: sum(s) / len(s)
            ),
        ),
    ),
    Exercise(
        "steps.next_scale",
        "Give the next loss scale and how many finite steps came in a row: half after an overflow, "
        "double after 2,000 finite ones.",
        next_scale,
        lambda g: [
            (1024.0, 7, 1.5),
            (1024.0, INTERVAL - 1, 1.5),
            (1024.0, 7, math.inf),
            (8.0, 0, math.nan),
        ],
        next_scale_answer,
        (
            Mistake("grow only after 2,000 finite steps in a row.", _scale_grows_always),
            Mistake("after an overflow the row starts again at 0.", _scale_keeps_row),
        ),
    ),
    Exercise(
        "steps.clip",
        "Scale all gradients by one factor so that their common norm is at most the limit.",
        clip,
        lambda g: [
            ([normal(g, 4, 3) * 5, normal(g, 7)], 1.0),
            ([normal(g, 2, 2) * 0.01, normal(g, 2) * 0.01], 1.0),
        ],
        clip_answer,
        (
            Mistake("one norm over all gradients: their direction must stay.", _clip_each),
            Mistake("scale; do not cut off single numbers.", _clip_elements),
            Mistake("gradients below the limit stay as they are.", _clip_always),
        ),
        tolerance=1e-4,
    ),
)
