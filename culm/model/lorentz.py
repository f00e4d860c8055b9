"""What parts of a hyperbolic model share: states are space parts of points of a hyperboloid.

A point is [sqrt(|s|^2 + 1/c), s]: the space part s says all, so the residual stream and the cache
store s alone, in E numbers, and no rounding moves a point off the hyperboloid. Each part lifts what
it reads, in fp32. Norms act on the space part and are those of every model (as in HELM, arXiv
2505.24722).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from culm.hyperbolic.curvature import Curvature
from culm.hyperbolic.lorentz import Lorentz, lift, offsets
from culm.hyperbolic.ratios import root
from culm.model.init import CustomInit
from culm.model.linear import Linear


class LorentzLinear(nn.Module, CustomInit):
    """s: (..., inputs), the space part of points -> (..., outputs): W s + w (x_0 - 1 / sqrt(c)).

    A linear map of the complete point (arXiv 2105.14686), less the origin, whose time grows without
    limit as c goes to 0: there the map is W s. What it gives is the space part of the next point.
    The weights of the time are a vector, so that the matrix is one that can be quantised, adapted
    and divided like any other.
    """

    def __init__(self, inputs: int, outputs: int, residual: bool = False) -> None:
        super().__init__()
        self.space = Linear(inputs, outputs, residual=residual)
        self.time = nn.Parameter(torch.empty(outputs))

    def init_weights(self, generator: Callable[[str], torch.Generator], std: float) -> None:
        weight = torch.empty(self.time.shape)
        self.time.copy_(weight.normal_(0.0, std, generator=generator("time")))

    def forward(self, s: Tensor, time: Tensor) -> Tensor:
        """time: (..., 1) fp32, of the points, less that of the origin."""
        return self.space(s) + (time * self.time).to(s.dtype)


class PartCurvature(Curvature, CustomInit):
    """The curvature of a part of a model."""

    def init_weights(self, generator: Callable[[str], torch.Generator], std: float) -> None:
        self.reset()


def time_in_fp32(s: Tensor, curvature: Tensor | float) -> Tensor:
    """(..., E) -> (..., 1) fp32: the time of points with this space part, less the origin's."""
    return offsets(s.float(), curvature)[..., :1]


def lorentz_sum(x: Tensor, y: Tensor, weight: Tensor, curvature: float) -> Tensor:
    """x + |weight| * y, scaled back onto the hyperboloid (arXiv 2412.14695).

    The length of the sum is computed from the distance of its parts: the inner product of a point
    far out with itself has few digits left in fp32.

    x, y: (..., E) space parts. weight: (). Returns points (..., E + 1) in fp32.
    """
    a, b = lift(x.float(), curvature), lift(y.float(), curvature)
    share = weight.abs()
    square = (1 + share).square() + share * curvature * Lorentz(curvature).chord(a, b)
    return (a + share * b) / root(square)
