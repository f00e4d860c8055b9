"""Means of points: the centroid of the Lorentz model in closed form, the Frechet mean of any."""

from __future__ import annotations

import torch
from torch import Tensor

from culm.hyperbolic.lorentz import to_hyperboloid
from culm.hyperbolic.manifold import Manifold
from culm.hyperbolic.ratios import root, tanh_ratio

STEPS = 200


def lorentz_centroid(x: Tensor, weights: Tensor, curvature: Tensor | float = 1.0) -> Tensor:
    """The point that minimises sum_i w_i |x - x_i|_L^2 (Law et al. 2019): the weighted sum, scaled
    back onto the hyperboloid.

    x: (..., N, D + 1). weights: (..., N), 0 or more, some above 0. Returns (..., D + 1).
    """
    return to_hyperboloid((weights[..., None] * x).sum(-2), curvature)


@torch.no_grad()
def frechet_mean(
    manifold: Manifold, x: Tensor, weights: Tensor | None = None, tolerance: float = 1e-12
) -> Tensor:
    """The point that minimises sum_i w_i d(x, x_i)^2, by gradient descent.

    At curvature -c the sum is convex, with second derivatives of at most r coth(r) for points
    within r / sqrt(c): steps of the inverse never overshoot. No gradient goes through it.

    x: (N, D). weights: (N,); the same for all unless given. tolerance: length of the last step.

    Raises:
        ValueError: it did not converge, as with a tolerance below the rounding of fp32.
    """
    share = torch.full_like(x[:, 0], 1 / len(x)) if weights is None else weights / weights.sum()
    mean = x[0]
    for _ in range(STEPS):
        tangents = manifold.log(mean, x)
        lengths = manifold.inner(mean, tangents, tangents)
        step = tanh_ratio(manifold.c(x) * lengths.max()) * (share[:, None] * tangents).sum(0)
        mean = manifold.exp(mean, step)
        if root(manifold.inner(mean, step, step)) < tolerance:
            return mean
    raise ValueError(
        f"tolerance: {tolerance} was not reached in {STEPS} steps; points in float64 allow 1e-12"
    )
