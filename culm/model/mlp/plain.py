"""The feed-forward of the first Transformers: up, activation, down (arXiv 1706.03762)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import PositiveInt
from torch import Tensor

from culm.model.activation import ACTIVATIONS, Activation
from culm.model.context import LayerContext
from culm.model.linear import Linear, Split
from culm.model.mlp.part import FeedForwardConfig, FeedForwardModule


class Plain(FeedForwardConfig):
    """hidden: inner width; if not given, four times the model's. bias: of both projections.

    activation: gelu_tanh as GPT-2, gelu as Pythia, relu2 (arXiv 2109.08668) as nanochat.
    """

    kind: Literal["plain"] = "plain"
    hidden: PositiveInt | None = None
    activation: Activation = "gelu"
    bias: bool = False

    def resolved(self, width: int) -> Plain:
        return self.model_copy(update={"hidden": self.hidden or 4 * width})

    def build(self, width: int) -> PlainFeedForward:
        return PlainFeedForward(width, self.hidden or 4 * width, self.activation, self.bias)


class PlainFeedForward(FeedForwardModule):
    """down(activation(up(x)))."""

    scale_folds = {"x": ("up",)}  # noqa: RUF012

    def __init__(self, width: int, hidden: int, activation: Activation, bias: bool) -> None:
        super().__init__()
        self.activation = activation
        self.up = Linear(width, hidden, bias)
        self.down = Linear(hidden, width, bias, residual=True)

    @property
    def tensor_parallel(self) -> Mapping[str, Split]:
        return {"up": "columns", "down": "rows"}

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))
