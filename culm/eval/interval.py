"""Shares and means with 95 % intervals, and whether two models differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

RESAMPLES = 10_000
# 97.5 % of Student's t, from one degree of freedom on.
QUANTILES = (12.706, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


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


def student(values: Sequence[float]) -> Estimate:
    """A mean of few values, such as one a seed, with Student's interval; a single value has none.

    Quantiles beyond the table are from their expansion in 1 / degrees of freedom (Fisher and
    Cornish 1960), within 0.1 %.
    """
    mean, n = fmean(values), len(values) - 1
    if not n:
        return Estimate(mean, -math.inf, math.inf, 1)
    z = 1.959964
    far = z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    half = (QUANTILES[n - 1] if n <= len(QUANTILES) else far) * stdev(values) / math.sqrt(n + 1)
    return Estimate(mean, mean - half, mean + half, n + 1)


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
