"""Exercises of lesson 4b: memory, time, checkpoints, processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from culm.data.order import Epochs
from culm.eval import plots
from culm.learn.exercise import Exercise, Mistake, normal
from culm.optim.adamw import AdamWRule
from culm.seed import keyed_permutation


def training_bytes(parameters: int) -> int:
    weight = nn.Parameter(torch.zeros(parameters))
    states = AdamWRule((0.9, 0.95)).init(weight)
    averages = [states["exp_avg"], states["exp_avg_sq"]]
    gradient = torch.zeros_like(weight)
    return sum(tensor.nbytes for tensor in (weight, gradient, *averages))


def training_bytes_answer(parameters: int) -> int:
    return parameters * (4 + 4 + 8)


def flops(parameters: float, tokens: float) -> float:
    return 6 * parameters * tokens


def utilisation(parameters: float, tokens_per_second: float, peak: float) -> float:
    return flops(parameters, tokens_per_second) / peak


def resume_step(checkpoints: list[tuple[int, bool]]) -> int:
    return max((step for step, complete in checkpoints if complete), default=0)


@dataclass(frozen=True)
class Shuffled:
    """A permutation of `rows` rows for each epoch, from the seed alone."""

    rows: int
    seed: int

    def __call__(self, epoch: int) -> list[int]:
        return keyed_permutation(np.arange(self.rows), self.seed, epoch).tolist()


def rows_of_step(step: int, size: int, order: Shuffled) -> list[int]:
    epochs = Epochs(np.arange(order.rows), order.seed)
    return [int(row) for row in epochs.of_step(step, lambda number: number * size)]


def rows_of_step_answer(step: int, size: int, order: Callable[[int], list[int]]) -> list[int]:
    count = len(order(0))
    places = range(step * size, (step + 1) * size)
    return [order(place // count)[place % count] for place in places]


def _rows_of_one_epoch(step: int, size: int, order: Callable[[int], list[int]]) -> list[int]:
    count = len(order(0))
    return [order(0)[place % count] for place in range(step * size, (step + 1) * size)]


def _rows_without_rest(step: int, size: int, order: Callable[[int], list[int]]) -> list[int]:
    steps = len(order(0)) // size
    start = step % steps * size
    return order(step // steps)[start : start + size]


def reduced(gradients: list[Tensor], counts: list[int]) -> list[Tensor]:
    mean = torch.stack(gradients).sum(0) / sum(counts)
    return [mean] * len(gradients)


def _mean_of_ranks(gradients: list[Tensor], counts: list[int]) -> list[Tensor]:
    means = [one / count for one, count in zip(gradients, counts, strict=True)]
    return [torch.stack(means).mean(0)] * len(gradients)


def _not_exchanged(gradients: list[Tensor], counts: list[int]) -> list[Tensor]:
    return [one / count for one, count in zip(gradients, counts, strict=True)]


def shards(weights: Tensor, ranks: int) -> list[Tensor]:
    size = -(-len(weights) // ranks)
    padded = torch.cat((weights, weights.new_zeros(size * ranks - len(weights))))
    return list(padded.split(size))


def _shards_without_padding(weights: Tensor, ranks: int) -> list[Tensor]:
    return list(weights.tensor_split(ranks))


def _shards_in_turn(weights: Tensor, ranks: int) -> list[Tensor]:
    size = -(-len(weights) // ranks)
    padded = torch.cat((weights, weights.new_zeros(size * ranks - len(weights))))
    return [padded[rank::ranks] for rank in range(ranks)]


def smooth(values: list[float], share: float) -> list[float]:
    return plots._smooth(values, share)


def smooth_answer(values: list[float], share: float) -> list[float]:
    mean, found = 0.0, []
    for step, value in enumerate(values, 1):
        mean = share * mean + (1 - share) * value
        found.append(mean / (1 - share**step))
    return found


def _smooth_from_zero(values: list[float], share: float) -> list[float]:
    mean, found = 0.0, []
    for value in values:
        mean = share * mean + (1 - share) * value
        found.append(mean)
    return found


EXERCISES = (
    Exercise(
        "scale.training_bytes",
        "Count the bytes of weights, gradients and both averages of AdamW in fp32.",
        training_bytes,
        lambda g: [(1000,), (7,)],
        training_bytes_answer,
        (
            Mistake("AdamW keeps two averages per weight.", lambda n: 12 * n),
            Mistake("gradients take as much as the weights.", lambda n: 4 * n),
        ),
    ),
    Exercise(
        "scale.flops",
        "Estimate the FLOPs of training: 6 for each parameter and token.",
        flops,
        lambda g: [(1e9, 2e10), (124e6, 1e10)],
        None,
        (Mistake("the backward takes twice the forward: 2 + 4.", lambda n, d: 2 * n * d),),
    ),
    Exercise(
        "scale.utilisation",
        "Give the share of a machine's peak FLOP/s that a run uses (MFU).",
        utilisation,
        lambda g: [(1e9, 60_000.0, 989e12), (124e6, 1000.0, 5e12)],
        None,
        (
            Mistake("training takes 6 FLOPs, not 2.", lambda n, t, p: 2 * n * t / p),
            Mistake("it is a share: divide by the peak.", lambda n, t, p: p / (6 * n * t)),
        ),
    ),
    Exercise(
        "scale.resume_step",
        "Say from which step to resume: the newest checkpoint that is complete, or 0.",
        resume_step,
        lambda g: [
            ([(100, True), (300, False), (200, True)],),
            ([],),
            ([(100, False)],),
        ],
        None,
        (
            Mistake(
                "a checkpoint that was cut off in the middle of writing is no checkpoint.",
                lambda found: max((step for step, _ in found), default=0),
            ),
        ),
    ),
    Exercise(
        "scale.rows_of_step",
        "List the rows that a step reads: `size` of an endless order, a permutation per epoch.",
        rows_of_step,
        lambda g: [(0, 3, Shuffled(10, 1)), (3, 3, Shuffled(10, 1)), (7, 4, Shuffled(5, 2))],
        rows_of_step_answer,
        (
            Mistake("each epoch has an order of its own.", _rows_of_one_epoch),
            Mistake("a step may begin in one epoch and end in the next.", _rows_without_rest),
        ),
    ),
    Exercise(
        "scale.reduced",
        "Give every rank the gradient of the step, from each rank's summed gradient and count.",
        reduced,
        lambda g: [([normal(g, 4), normal(g, 4)], [10, 30]), ([normal(g, 2)], [5])],
        None,
        (
            Mistake("ranks have unequal counts: add sums, divide once.", _mean_of_ranks),
            Mistake("all ranks must end with the same gradient.", _not_exchanged),
        ),
    ),
    Exercise(
        "scale.shards",
        "Divide weights (N,) into equally long parts for all ranks, the last filled up with 0.",
        shards,
        lambda g: [(normal(g, 10), 4), (normal(g, 8), 2), (normal(g, 3), 3)],
        None,
        (
            Mistake("all parts must be equally long: fill up with 0.", _shards_without_padding),
            Mistake("neighbours belong to one rank.", _shards_in_turn),
        ),
    ),
    Exercise(
        "scale.smooth",
        "Give the running mean, share * old + (1 - share) * new, corrected for its start at 0.",
        smooth,
        lambda g: [([5.0, 4.0, 4.5, 3.0], 0.9), ([1.0, 1.0, 1.0], 0.5)],
        smooth_answer,
        (
            Mistake("it starts at 0: divide by 1 - share^step.", _smooth_from_zero),
            Mistake("this is the curve itself.", lambda values, share: values),
        ),
    ),
)
