"""Gated feed-forward: one projection gates another (arXiv 2002.05202)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import PositiveInt
from torch import Tensor

from culm.model.activation import ACTIVATIONS, Activation
from culm.model.context import LayerContext
from culm.model.linear import Linear, Split
from culm.model.mlp.part import FeedForwardConfig, FeedForwardModule


class Gated(FeedForwardConfig):
    """hidden: inner width; if not given 8/3 of the model's, rounded up to a multiple of 32."""

    hidden: PositiveInt | None = None

    @property
    @abstractmethod
    def activation(self) -> Activation:
        """Of the gate."""

    def inner(self, width: int) -> int:
        """The inner width in a model of this width."""
        return self.hidden or -(-8 * width // 3 // 32) * 32

    def resolved(self, width: int) -> Self:
        return self.model_copy(update={"hidden": self.inner(width)})

    def build(self, width: int) -> GatedFeedForward:
        return GatedFeedForward(width, self.inner(width), self.activation)


class SwiGLU(Gated):
    """Gated by SiLU (arXiv 2002.05202)."""

    kind: Literal["swiglu"] = "swiglu"

    @property
    def activation(self) -> Activation:
        return "silu"


class GeGLU(Gated):
    """Gated by GELU (arXiv 2002.05202).

    exact: exact GELU instead of the tanh approximation, which Gemma uses.
    """

    kind: Literal["geglu"] = "geglu"
    exact: bool = False

    @property
    def activation(self) -> Activation:
        return "gelu" if self.exact else "gelu_tanh"


class GatedFeedForward(FeedForwardModule):
    """down(activation(gate(x)) * up(x))."""

    scale_folds = {"x": ("gate", "up"), "up": ("down",)}  # noqa: RUF012

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.gate = Linear(width, hidden)
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width, residual=True)

    @property
    def tensor_parallel(self) -> Mapping[str, Split]:
        return {"gate": "columns", "up": "columns", "down": "rows"}

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))
