"""The Poincare ball (arXiv 1705.08039, 1805.09112): hyperbolic space as the inside of a ball.

    d(x, y) = 2 / sqrt(c) arsinh( sqrt(c) |x - y| / sqrt((1 - c|x|^2)(1 - c|y|^2)) )

This is the arcosh form of the paper, which loses half of the digits for near points. At c = 0 it is
2 |x - y|, since the metric there is 4 times the Euclidean one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from culm.hyperbolic.curvature import Curvature
from culm.hyperbolic.manifold import Manifold
from culm.hyperbolic.ratios import arsinh_ratio, artanh_ratio, dot, root, squared, tanh_ratio

# Share of the radius that points keep from the edge, where the metric is infinite; as geoopt's.
MARGIN = {torch.float64: 1e-5, torch.float32: 4e-3}


@dataclass(frozen=True)
class Poincare(Manifold):
    """The ball of radius 1 / sqrt(c), with curvature -c.

    curvature: c, 0 or more; a module where it is learned.
    """

    curvature: Curvature | Tensor | float = 1.0

    def ambient(self, dimension: int) -> int:
        return dimension

    def origin(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def project(self, x: Tensor) -> Tensor:
        """Points within `MARGIN` of the edge, or outside, are moved in along their radius.

        Raises:
            KeyError: x has a precision in which the edge cannot be kept, such as bf16.
        """
        c = self.c(x)
        # At c = 0 the ball is all of space.
        limit = (1 - MARGIN[x.dtype]) / c.clamp(min=torch.finfo(x.dtype).tiny).sqrt()
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inside = x * (limit / norm.clamp(min=torch.finfo(x.dtype).tiny))
        return torch.where(norm > limit, inside, x)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        c = self.c(x)
        shrunk = squared(x - y) / ((1 - c * squared(x)) * (1 - c * squared(y)))
        return (2 * root(shrunk) * arsinh_ratio(c * shrunk)).squeeze(-1)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return self.factor(x).square() * dot(u, v)

    def gradient(self, x: Tensor, euclidean: Tensor) -> Tensor:
        return euclidean / self.factor(x).square()

    def factor(self, x: Tensor) -> Tensor:
        """(..., 1): lambda = 2 / (1 - c |x|^2), by which lengths at x are longer."""
        return 2 / (1 - self.c(x) * squared(x))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Moebius addition: y, moved along the geodesic from the origin to x."""
        c = self.c(x)
        xx, yy, xy = squared(x), squared(y), dot(x, y)
        found = (1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y
        return found / (1 + 2 * c * xy + c * c * xx * yy)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        half = v * (self.factor(x) / 2)
        return self.project(self.add(x, half * tanh_ratio(self.c(x) * squared(half))))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        moved = self.add(-x, y)
        return moved * artanh_ratio(self.c(x) * squared(moved)) * (2 / self.factor(x))

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self._gyrate(y, -x, v) * (self.factor(x) / self.factor(y))

    def from_origin(self, v: Tensor) -> Tensor:
        """v: (..., D), partial derivatives of a curve; the point is 2 |v| away."""
        return self.project(v * tanh_ratio(self.c(v) * squared(v)))

    def _gyrate(self, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        """The rotation by which Moebius addition fails to be associative: gyr[u, v] w."""
        c = self.c(u)
        uu, vv, uv, uw, vw = squared(u), squared(v), dot(u, v), dot(u, w), dot(v, w)
        first = c * (vw + c * (2 * uv * vw - uw * vv))
        second = -c * (uw + c * vw * uu)
        return w + 2 * (first * u + second * v) / (1 + 2 * c * uv + c * c * uu * vv)
