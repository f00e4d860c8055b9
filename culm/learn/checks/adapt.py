"""Exercises of lesson 6b: a curriculum, and low-rank adapters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from culm.adapt.lora import LoRA, LoRALinear
from culm.data.curriculum import BabySteps, Competence
from culm.learn.exercise import Exercise, Mistake, normal
from culm.model.linear import Linear


def competence(step: int, steps: int, initial: float) -> float:
    return Competence(initial=initial).part(step, steps)[1]


def competence_answer(step: int, steps: int, initial: float) -> float:
    return min(1.0, (step / steps * (1 - initial**2) + initial**2) ** 0.5)


def buckets(step: int, steps: int, count: int) -> float:
    return BabySteps(buckets=count).part(step, steps)[1]


def buckets_answer(step: int, steps: int, count: int) -> float:
    return (step * count // steps + 1) / count


def _adapted(weight: Tensor, a: Tensor, b: Tensor, alpha: float, **more) -> LoRALinear:
    base = Linear(weight.shape[1], weight.shape[0])
    base.weight = nn.Parameter(weight)
    layer = LoRA(rank=len(a), alpha=alpha, **more).adapt(base)
    layer.a.data, layer.b.data = a, b
    return layer.eval()


def lora(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    return _adapted(weight, a, b, alpha)(x).detach()


def lora_answer(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    return x @ weight.T + alpha / len(a) * (x @ a.T @ b.T)


def _lora_unscaled(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    return x @ weight.T + alpha * (x @ a.T @ b.T)


def _lora_alone(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    return alpha / len(a) * (x @ a.T @ b.T)


def merged(weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    return _adapted(weight, a, b, alpha).merged().weight.detach()


def merged_answer(weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    return weight + alpha / len(a) * b @ a


def trainable(outputs: int, inputs: int, rank: int) -> int:
    layer = _adapted(
        torch.zeros(outputs, inputs), torch.zeros(rank, inputs), torch.zeros(outputs, rank), 1.0
    )
    return layer.a.numel() + layer.b.numel()


def dora(weight: Tensor, a: Tensor, b: Tensor, alpha: float, magnitude: Tensor) -> Tensor:
    layer = _adapted(weight, a, b, alpha, dora=True)
    layer.magnitude = nn.Parameter(magnitude)
    return layer.merged().weight.detach()


def dora_answer(weight: Tensor, a: Tensor, b: Tensor, alpha: float, magnitude: Tensor) -> Tensor:
    summed = merged_answer(weight, a, b, alpha)
    return magnitude[:, None] * summed / summed.norm(dim=1, keepdim=True)


def _dora_by_base(weight: Tensor, a: Tensor, b: Tensor, alpha: float, magnitude: Tensor) -> Tensor:
    summed = merged_answer(weight, a, b, alpha)
    return magnitude[:, None] * summed / weight.norm(dim=1, keepdim=True)


def _layer(g: torch.Generator, outputs: int, inputs: int, rank: int) -> tuple:
    return normal(g, outputs, inputs), normal(g, rank, inputs), normal(g, outputs, rank)


EXERCISES = (
    Exercise(
        "adapt.competence",
        "Give the share of the sorted examples that step t of T may read: a root that goes from "
        "the initial share to 1.",
        competence,
        lambda g: [(0, 100, 0.1), (30, 100, 0.1), (99, 100, 0.5), (100, 100, 0.2)],
        competence_answer,
        (
            Mistake(
                "the share grows as a root, so that most steps see the hard part.",
                lambda step, steps, initial: initial + (1 - initial) * step / steps,
            ),
            Mistake(
                "square the initial share under the root.",
                lambda step, steps, initial: min(
                    1.0, (step / steps * (1 - initial) + initial) ** 0.5
                ),
            ),
        ),
    ),
    Exercise(
        "adapt.buckets",
        "Divide the steps into as many parts as there are buckets; give the share of examples in "
        "all buckets so far.",
        buckets,
        lambda g: [(0, 100, 4), (24, 100, 4), (25, 100, 4), (99, 100, 4)],
        buckets_answer,
        (
            Mistake(
                "the first bucket is read from the first step.",
                lambda step, steps, count: (step * count // steps) / count,
            ),
            Mistake(
                "a bucket is added as a whole.",
                lambda step, steps, count: step / steps + 1 / count,
            ),
        ),
    ),
    Exercise(
        "adapt.lora",
        "Add to the layer's own output that of A and then B, times alpha / rank.",
        lora,
        lambda g: [
            (normal(g, 3, 6), *_layer(g, 4, 6, 2), 8.0),
            (normal(g, 1, 4), *_layer(g, 4, 4, 1), 1.0),
        ],
        lora_answer,
        (
            Mistake("divide alpha by the rank.", _lora_unscaled),
            Mistake("the frozen layer is added.", _lora_alone),
        ),
    ),
    Exercise(
        "adapt.merged",
        "Give the weights of one plain layer that computes the same.",
        merged,
        lambda g: [(*_layer(g, 4, 6, 2), 8.0), (*_layer(g, 5, 3, 1), 2.0)],
        merged_answer,
        (
            Mistake(
                "divide alpha by the rank.", lambda weight, a, b, alpha: weight + alpha * b @ a
            ),
            Mistake("add the frozen weights.", lambda weight, a, b, alpha: alpha / len(a) * b @ a),
        ),
    ),
    Exercise(
        "adapt.trainable",
        "Count the trained numbers of an adapter on a layer.",
        trainable,
        lambda g: [(64, 64, 8), (128, 32, 4), (7, 5, 1)],
        lambda outputs, inputs, rank: rank * (outputs + inputs),
        (
            Mistake("there are two matrices.", lambda outputs, inputs, rank: rank * inputs),
            Mistake(
                "the layer itself is frozen.",
                lambda outputs, inputs, rank: outputs * inputs + rank * (outputs + inputs),
            ),
        ),
    ),
    Exercise(
        "adapt.dora",
        "Merge, then give each row of the sum the learned norm.",
        dora,
        lambda g: [(*_layer(g, 4, 6, 2), 8.0, normal(g, 4).abs()), (*_layer(g, 3, 3, 1), 1.0,
                   torch.ones(3))],
        dora_answer,
        (
            Mistake("divide by the norms of the sum.", _dora_by_base),
            Mistake(
                "scale each row to its learned norm.",
                lambda weight, a, b, alpha, magnitude: merged_answer(weight, a, b, alpha),
            ),
        ),
    ),
)  # fmt: skip
