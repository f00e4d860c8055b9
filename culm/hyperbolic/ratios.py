"""Functions f(r) / r with r = sqrt(z): smooth in z at 0, where r itself has no derivative.

With z = c |v|^2 they write every map of a space of curvature -c so that c = 0 is the Euclidean
limit and not a division by zero, and so that gradients at v = 0 are finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SMALL = 1e-5  # below it the series is exact to z^3, about 1e-15
TINY = {torch.float64: 1e-300, torch.float32: 1e-37, torch.bfloat16: 1e-37}
EDGE = {torch.float64: 1e-15, torch.float32: 6e-8, torch.bfloat16: 4e-3}


def _ratio(function: Callable[[Tensor], Tensor], series: Sequence[float], z: Tensor) -> Tensor:
    """function(r) / r, or 1 + a z + b z^2 for small z."""
    small = z < SMALL
    root = torch.where(small, torch.ones_like(z), z).sqrt()
    first, second = series
    return torch.where(small, 1 + z * (first + second * z), function(root) / root)


def sinh_ratio(z: Tensor) -> Tensor:
    """sinh(r) / r."""
    return _ratio(torch.sinh, (1 / 6, 1 / 120), z)


def tanh_ratio(z: Tensor) -> Tensor:
    """tanh(r) / r."""
    return _ratio(torch.tanh, (-1 / 3, 2 / 15), z)


def artanh_ratio(z: Tensor) -> Tensor:
    """artanh(r) / r; r is cut just below 1, where it is infinite."""
    below = 1 - EDGE[z.dtype]
    return _ratio(lambda r: torch.atanh(r.clamp(max=below)), (1 / 3, 1 / 5), z)


def arsinh_ratio(z: Tensor) -> Tensor:
    """arsinh(r) / r."""
    return _ratio(torch.asinh, (-1 / 6, 3 / 40), z)


def root(square: Tensor) -> Tensor:
    """The square root of a sum of squares, with derivative 0 at 0; rounding below 0 counts as 0."""
    return square.clamp(min=TINY[square.dtype]).sqrt()


def squared(x: Tensor) -> Tensor:
    """(..., D) -> (..., 1): the squared Euclidean norm."""
    return x.square().sum(-1, keepdim=True)


def dot(x: Tensor, y: Tensor) -> Tensor:
    """(..., D), (..., D) -> (..., 1)."""
    return (x * y).sum(-1, keepdim=True)
