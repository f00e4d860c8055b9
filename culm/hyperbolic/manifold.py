"""What a manifold is to the rest of Culm: distances, and steps along geodesics.

    x, y: points, u, v: tangent vectors at x, all (..., D); D is `ambient(dimension)`.

The Euclidean space is one of them, so a Euclidean twin of a hyperbolic model is one setting away.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from culm.hyperbolic.curvature import Curvature


class Manifold(ABC):
    """A Riemannian manifold whose points are rows of D numbers.

    curvature: c, where that of every plane is -c; learned, if it is a module.
    """

    curvature: Curvature | Tensor | float = 0.0

    def squares(self, x: Tensor, v: Tensor) -> Tensor:
        """Of what the second moment of Adam is the mean, for a gradient v at x: (..., 1), its
        squared length, which is the same in all coordinates; or (..., D), where each of the
        coordinates has a length of its own.
        """
        return self.inner(x, v, v).clamp(min=0)  # rounding far out may say otherwise

    def c(self, like: Tensor) -> Tensor:
        """() the curvature as it is now, in the precision of some points."""
        given = self.curvature() if isinstance(self.curvature, Curvature) else self.curvature
        return torch.as_tensor(given, dtype=like.dtype, device=like.device)

    @abstractmethod
    def ambient(self, dimension: int) -> int:
        """Numbers of a point of a manifold of this dimension."""

    @abstractmethod
    def origin(self, like: Tensor) -> Tensor:
        """The origin, in the shape of some points."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """The point of the manifold for numbers that rounding or a step moved off it."""

    @abstractmethod
    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """(...): the length of the geodesic between two points."""

    @abstractmethod
    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """(..., 1): the inner product of two tangent vectors at x."""

    @abstractmethod
    def gradient(self, x: Tensor, euclidean: Tensor) -> Tensor:
        """The Riemannian gradient at x, from the partial derivatives."""

    @abstractmethod
    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Where the geodesic from x with the velocity v is after a time of 1."""

    @abstractmethod
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The tangent vector at x with exp(x, v) = y."""

    @abstractmethod
    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """The tangent vector v at x, moved to y in parallel along the geodesic."""

    def from_origin(self, v: Tensor) -> Tensor:
        """exp at the origin. v: (..., dimension), coordinates of a tangent vector there."""
        return self.exp(self.origin(v), v)


@dataclass(frozen=True)
class Euclidean(Manifold):
    """Flat space: geodesics are straight lines."""

    def ambient(self, dimension: int) -> int:
        return dimension

    def origin(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def project(self, x: Tensor) -> Tensor:
        return x

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x - y, dim=-1)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (u * v).sum(-1, keepdim=True)

    def squares(self, x: Tensor, v: Tensor) -> Tensor:
        return v.square()

    def gradient(self, x: Tensor, euclidean: Tensor) -> Tensor:
        return euclidean

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return x + v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return y - x

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return v


class OnManifold(ABC):
    """A module some of whose parameters hold points of a manifold, one in each row."""

    @abstractmethod
    def manifolds(self) -> Mapping[str, Manifold]:
        """The manifold of each of them, by the name of its attribute."""


def manifolds_of(module: nn.Module) -> dict[nn.Parameter, Manifold]:
    """The manifold of every parameter of a model that holds points of one."""
    found: dict[nn.Parameter, Manifold] = {}
    for part in module.modules():
        if isinstance(part, OnManifold):
            for name, manifold in part.manifolds().items():
                found[part.get_parameter(name)] = manifold
    return found
