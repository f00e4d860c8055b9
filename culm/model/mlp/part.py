"""The interface of a feed-forward: it works on each token separately."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from culm.config import Config
from culm.model.context import LayerContext
from culm.model.linear import Split


class FeedForwardConfig(Config, ABC):
    """Settings of a feed-forward."""

    kind: str

    @abstractmethod
    def resolved(self, width: int) -> Self:
        """The same with every default that depends on the model's width filled in."""

    @abstractmethod
    def build(self, width: int) -> FeedForwardModule:
        """For a model of this width."""


class FeedForwardModule(nn.Module, ABC):
    """x: (B, T, E) -> (B, T, E)."""

    @property
    def tensor_parallel(self) -> Mapping[str, Split]:
        """How its layers are divided over tensor-parallel ranks, by attribute; none: each rank
        computes all layers, of its part of the tokens.
        """
        return {}

    @abstractmethod
    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """Experts leave their routing in `context.outputs`."""
