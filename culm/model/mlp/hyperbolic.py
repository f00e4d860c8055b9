"""SwiGLU between points of a hyperboloid (HELM, arXiv 2505.24722)."""

from __future__ import annotations

from typing import Literal, Self

import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from culm.model.context import LayerContext
from culm.model.lorentz import LorentzLinear, time_in_fp32
from culm.model.mlp.part import FeedForwardConfig, FeedForwardModule


class HyperbolicSwiGLU(FeedForwardConfig):
    """hidden: inner width; if not given 8/3 of the model's, rounded up to a multiple of 32.

    curvature: c of the points that it reads and gives.
    """

    kind: Literal["hyperbolic"] = "hyperbolic"
    hidden: PositiveInt | None = None
    curvature: PositiveFloat = 1.0

    def inner(self, width: int) -> int:
        """The inner width in a model of this width."""
        return self.hidden or -(-8 * width // 3 // 32) * 32

    def resolved(self, width: int) -> Self:
        return self.model_copy(update={"hidden": self.inner(width)})

    def build(self, width: int) -> HyperbolicFeedForward:
        return HyperbolicFeedForward(width, self.inner(width), self.curvature)


class HyperbolicFeedForward(FeedForwardModule):
    """s: (B, T, E), space parts -> (B, T, E): the gate acts on space parts, and every linear map
    reads complete points.
    """

    def __init__(self, width: int, hidden: int, curvature: float) -> None:
        super().__init__()
        self.curvature = curvature
        self.gate = LorentzLinear(width, hidden)
        self.up = LorentzLinear(width, hidden)
        self.down = LorentzLinear(hidden, width, residual=True)

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        time = time_in_fp32(x, self.curvature)
        inner = F.silu(self.gate(x, time)) * self.up(x, time)
        return self.down(inner, time_in_fp32(inner, self.curvature))
