"""Base-LCM (arXiv 2412.08821): the next concept by mean squared error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from culm.concept.diffusion import Sampler
from culm.concept.network import (
    Chances,
    ConceptNetwork,
    History,
    NetworkConfig,
    successors,
    summed,
)


class Base(NetworkConfig):
    """The trunk predicts the next concept itself: the mean of all that may follow."""

    kind: Literal["base"] = "base"

    def new(self, dim: int) -> BaseNetwork:
        return BaseNetwork(self, dim)


class BaseNetwork(ConceptNetwork):
    """concepts: (B, S, C) -> the mean of the next concept after each, (B, S, C)."""

    def forward(self, concepts: Tensor) -> Tensor:
        return self.outward(self.trunk(self.inward(concepts)))

    def loss(self, concepts: Tensor, present: Tensor, chances: Chances) -> Mapping[str, Tensor]:
        found = self(concepts[:, :-1])
        distances = (found - concepts[:, 1:]).square().mean(-1)
        return {"mse": summed(distances, successors(present))}

    def random(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        return torch.empty(*shape, 0)  # it is deterministic

    def predictions(self, concepts: Tensor, sampler: Sampler, random: Tensor) -> Tensor:
        return self(concepts)

    def next(self, history: History, sampler: Sampler, random: Tensor) -> Tensor:
        return self.outward(history.states[:, -1])
