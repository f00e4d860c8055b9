"""The Lorentz model (arXiv 1806.03417): hyperbolic space as one sheet of a hyperboloid.

    x = (x_0, x_s),  <x, x>_L = -x_0^2 + |x_s|^2 = -1/c,  x_0 = sqrt(|x_s|^2 + 1/c)

x_0 is the time, x_s the space part. It follows from the space part, and is stable far from the
origin, where the ball has no digits left. Libraries name the radius squared 1/c: k in geoopt's
Lorentz, c in HELM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from culm.hyperbolic.curvature import Curvature
from culm.hyperbolic.manifold import Manifold
from culm.hyperbolic.ratios import arsinh_ratio, root, sinh_ratio, squared

# The longest space part of a point, in radii: farther out its distance from the origin, in which
# the square of this cancels, would lose its sixth digit in fp64 and its third in fp32.
FARTHEST = {torch.float64: 1e10, torch.float32: 1e4}


def lorentz_inner(x: Tensor, y: Tensor) -> Tensor:
    """(..., D + 1) twice -> (..., 1): -x_0 y_0 + x_1 y_1 + ..."""
    product = x * y
    return product[..., 1:].sum(-1, keepdim=True) - product[..., :1]


def time_of(space: Tensor, curvature: Tensor | float) -> Tensor:
    """(..., D) -> (..., 1): the time of points with this space part."""
    return (squared(space) + 1 / curvature).sqrt()


def lift(space: Tensor, curvature: Tensor | float) -> Tensor:
    """(..., D) -> (..., D + 1): the points with this space part."""
    return torch.cat((time_of(space, curvature), space), -1)


def offsets(space: Tensor, curvature: Tensor | float) -> Tensor:
    """(..., D) -> (..., D + 1): the points with this space part, minus the origin.

    As c goes to 0, the time of an offset goes to 0, and the time of its point to infinity.
    """
    time = squared(space) / (time_of(space, curvature) + curvature**-0.5)
    return torch.cat((time, space), -1)


def centroid_of(mean: Tensor, curvature: Tensor | float) -> Tensor:
    """The centroid of points, from the weighted mean m of their offsets; the weights add up to 1.

    The mean of points, o + m, is on the hyperboloid or inside it: -c <o + m, o + m>_L is 1 or more.
    Rounding may give less for points far from the origin, so it is clamped to 1.

    mean: (..., D + 1). Returns (..., D + 1).
    """
    radius = curvature**-0.5
    time = mean[..., :1]
    square = 1 + curvature * (2 * radius * time - lorentz_inner(mean, mean))
    return torch.cat((time + radius, mean[..., 1:]), -1) / square.clamp(min=1).sqrt()


def to_hyperboloid(x: Tensor, curvature: Tensor | float) -> Tensor:
    """x: (..., D + 1) with <x, x>_L < 0, scaled so that it is -1/c."""
    return x / root(-lorentz_inner(x, x) * curvature)


def from_ball(x: Tensor, curvature: Tensor | float = 1.0) -> Tensor:
    """The point of the Lorentz model for one of the Poincare ball, (..., D) -> (..., D + 1)."""
    c = torch.as_tensor(curvature, dtype=x.dtype, device=x.device)
    square = c * squared(x)
    return torch.cat(((1 + square) / c.sqrt(), 2 * x), -1) / (1 - square)


def to_ball(x: Tensor, curvature: Tensor | float = 1.0) -> Tensor:
    """The point of the Poincare ball for one of the Lorentz model, (..., D + 1) -> (..., D)."""
    c = torch.as_tensor(curvature, dtype=x.dtype, device=x.device)
    return x[..., 1:] / (1 + c.sqrt() * x[..., :1])


@dataclass(frozen=True)
class Lorentz(Manifold):
    """The hyperboloid of curvature -c.

    curvature: c, above 0; a module where it is learned. At c = 0 the time is infinite, but
    distances of points with the same space parts go to the Euclidean ones.
    """

    curvature: Curvature | Tensor | float = 1.0

    def ambient(self, dimension: int) -> int:
        return dimension + 1

    def origin(self, like: Tensor) -> Tensor:
        return lift(torch.zeros_like(like[..., 1:]), self.c(like))

    def project(self, x: Tensor) -> Tensor:
        """Points beyond `FARTHEST` are moved in along their radius."""
        return self._within(x[..., 1:], self.c(x))

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """2 / sqrt(c) arsinh(sqrt(c) |x - y|_L / 2)."""
        chord = self.chord(x, y)
        return (root(chord) * arsinh_ratio(self.c(x) * chord / 4)).squeeze(-1)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return lorentz_inner(u, v)

    def gradient(self, x: Tensor, euclidean: Tensor) -> Tensor:
        flipped = torch.cat((-euclidean[..., :1], euclidean[..., 1:]), -1)
        return self.tangent(x, flipped)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """v without its part that is normal to the hyperboloid at x."""
        return v + self.c(x) * lorentz_inner(x, v) * x

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        z = self.c(x) * lorentz_inner(v, v).clamp(min=0)
        step, z = _shortened(v, z)
        return self.project(torch.cosh(root(z)) * x + sinh_ratio(z) * step)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        # cosh(sqrt(c) d) = 1 + c chord / 2, and the tangent part of y has the length sinh.
        squares = self.c(x) * self.distance(x, y).square()[..., None]
        return self.tangent(x, y) / sinh_ratio(squares)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        c = self.c(x)
        return v + c * lorentz_inner(y, v) / (1 - c * lorentz_inner(x, y)) * (x + y)

    def from_origin(self, v: Tensor) -> Tensor:
        """v: (..., D), a tangent vector at the origin without its time, which is 0."""
        step, z = _shortened(v, self.c(v) * squared(v))
        return self._within(step * sinh_ratio(z), self.c(v))

    def _within(self, space: Tensor, c: Tensor) -> Tensor:
        """The points with this space part, or the farthest ones in its direction."""
        most = FARTHEST[space.dtype] * c.clamp(min=torch.finfo(c.dtype).tiny).rsqrt()
        square = squared(space)
        return lift(space * (most / root(square).clamp(min=most)), c)

    def chord(self, x: Tensor, y: Tensor) -> Tensor:
        """(..., 1): <x - y, x - y>_L, with the difference of the times from those of the spaces."""
        space = x[..., 1:] - y[..., 1:]
        longer = (space * (x[..., 1:] + y[..., 1:])).sum(-1, keepdim=True)
        return squared(space) - (longer / (x[..., :1] + y[..., :1])).square()


def _shortened(v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """A step v of squared length z, in radii; a longer one than from end to end is cut there, where
    cosh is finite.
    """
    most = (2 * math.log(2 * FARTHEST[v.dtype])) ** 2
    return v * (most / z.clamp(min=most)).sqrt(), z.clamp(max=most)
