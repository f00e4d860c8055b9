"""Shares and means with 95 % intervals, and whether two models differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean over `items`, and the 95 % interval that contains the true one."""

    value: float
    low: float
    high: float
    items: int


def wilson(successes: float, items: int, z: float = 1.96) -> Estimate:
    """A share with Wilson's score interval.

    It stays correct near 0 and 1, where the normal one does not.

    >>> wilson(9, 10)     # 0.9, between 0.596 and 0.982
    """
    share = successes / items
    centre = share + z * z / (2 * items)
    spread = z * math.sqrt(share * (1 - share) / items + z * z / (4 * items * items))
    scale = 1 + z * z / items
    # Rounding would put the bounds of 0 and 1 on the wrong side of the share.
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return Estimate(share, max(0.0, min(low, share)), min(1.0, max(high, share)), items)


def bootstrap(values: Sequence[float], seed: int = 0) -> Estimate:
    """A mean with its percentile interval (Efron and Tibshirani 1993): items are resampled."""
    numbers = np.array(values, dtype=float)
    generator = np.random.default_rng(seed)
    means = [generator.choice(numbers, len(numbers)).mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(numbers.mean()), float(low), float(high), len(numbers))


def estimate(scores: Sequence[float]) -> Estimate:
    """The mean of scores: with Wilson's interval where each is 0 or 1, else by bootstrap."""
    if all(score in (0, 1) for score in scores):
        return wilson(sum(scores), len(scores))
    return bootstrap(scores)


def difference(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Estimate:
    """How much higher one model scores on the same questions than another, from -1 to 1.

    Paired bootstrap (Koehn 2004, W04-3250, for language models): questions are resampled together
    with both models' scores, so a question that is hard for both does not widen the interval. If 0
    lies outside it, the models differ.
    """
    return bootstrap([a - b for a, b in zip(ours, theirs, strict=True)], seed)
