"""How likely at least one of k samples is right."""

from __future__ import annotations

from math import prod


def pass_at_k(samples: int, right: int, k: int) -> float:
    """1 - C(samples - right, k) / C(samples, k), the unbiased estimate (2107.03374, eq. 1).

    `1 - (1 - right / samples) ** k` is biased.

    >>> pass_at_k(10, 3, 5)     # 0.9167
    """
    if not 1 <= k <= samples or not 0 <= right <= samples:
        raise ValueError(f"k: {k} of {samples} samples, {right} of them right, is not possible")
    if samples - right < k:
        return 1.0
    return 1 - prod(1 - k / i for i in range(samples - right + 1, samples + 1))
