"""A point for each node of a graph, in flat or hyperbolic space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from culm.config import Config
from culm.hyperbolic.curvature import Curvature
from culm.hyperbolic.lorentz import Lorentz, to_ball
from culm.hyperbolic.manifold import Euclidean, Manifold, OnManifold
from culm.hyperbolic.poincare import Poincare
from culm.model.init import generator

Geometry = Literal["poincare", "lorentz", "euclidean"]


class EmbeddingConfig(Config):
    """dimension: of the space. geometry: poincare and lorentz are two models of the same hyperbolic
    space; euclidean is flat.

    curvature: c, where the curvature of the space is -c. learned_curvature: whether it is trained.
    reach: points start at random, with coordinates up to it (arXiv 1705.08039).
    """

    dimension: PositiveInt = 5
    geometry: Geometry = "poincare"
    curvature: PositiveFloat = 1.0
    learned_curvature: bool = False
    reach: PositiveFloat = 1e-3

    @model_validator(mode="after")
    def _curved(self) -> EmbeddingConfig:
        if self.geometry == "euclidean" and (self.learned_curvature or self.curvature != 1.0):
            raise ValueError("curvature: flat space has none; it goes with poincare or lorentz")
        return self

    def build(self, nodes: int, seed: int = 0) -> Embedding:
        """Points close to the origin, in fp64: fp32 has no digits left at the edge of the ball."""
        return Embedding(self, nodes, seed)


class Embedding(nn.Module, OnManifold):
    """nodes: (...) int64 -> points (..., D)."""

    def __init__(self, config: EmbeddingConfig, nodes: int, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.curvature = Curvature(config.curvature, config.learned_curvature, torch.float64)
        self.manifold = manifold_of(config.geometry, self.curvature)
        start = torch.empty(nodes, config.dimension, dtype=torch.float64)
        start.uniform_(-config.reach, config.reach, generator=generator(seed, "points"))
        with torch.no_grad():
            self.points = nn.Parameter(self.manifold.from_origin(start))

    def manifolds(self) -> Mapping[str, Manifold]:
        return {"points": self.manifold}

    def forward(self, nodes: Tensor) -> Tensor:
        points = self.points[nodes]
        # A curvature that was just updated may have moved the edge.
        return self.manifold.project(points) if self.config.learned_curvature else points

    @torch.no_grad()
    def disc(self) -> Tensor:
        """(nodes, D): the points in the Poincare ball of radius 1, or in flat space."""
        points = self(torch.arange(len(self.points), device=self.points.device))
        if self.config.geometry == "euclidean":
            return points
        c = self.manifold.c(points)
        ball = to_ball(points, c) if self.config.geometry == "lorentz" else points
        return ball * c.sqrt()


def manifold_of(geometry: Geometry, curvature: Curvature) -> Manifold:
    """The manifold of a setting."""
    match geometry:
        case "poincare":
            return Poincare(curvature)
        case "lorentz":
            return Lorentz(curvature)
        case "euclidean":
            return Euclidean()
