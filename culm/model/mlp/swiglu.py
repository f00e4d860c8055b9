"""SwiGLU feed-forward (arXiv 2002.05202)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from culm.config import Config
from culm.model.linear import Linear


class SwiGLU(Config):
    """hidden: inner width; if not given 8/3 of the model's, rounded up to a multiple of 32."""

    kind: Literal["swiglu"] = "swiglu"
    hidden: PositiveInt | None = None

    def inner(self, width: int) -> int:
        """The inner width in a model of this width."""
        return self.hidden or -(-8 * width // 3 // 32) * 32

    def build(self, width: int) -> SwiGLUFeedForward:
        return SwiGLUFeedForward(width, self.inner(width))


class SwiGLUFeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)); x: (B, T, E) -> (B, T, E)."""

    tensor_parallel = {"gate": "columns", "up": "columns", "down": "rows"}  # noqa: RUF012
    folds = {"x": ("gate", "up"), "up": ("down",)}  # noqa: RUF012

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = Linear(width, hidden)
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width, residual=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))
