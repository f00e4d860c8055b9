"""Normalisation over the last axis: statistics in fp32, result in the dtype of x."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor, nn

from culm.config import Config, one_of
from culm.model.precision import FullPrecision


class Norm(FullPrecision, ABC):
    """x: (..., width) -> (..., width)."""

    weight: nn.Parameter

    @abstractmethod
    def reset(self) -> None:
        """Fill weight and bias with values that have no effect."""

    @abstractmethod
    def rescale(self, factor: Tensor | float) -> None:
        """Multiply the output by a factor, (width,) or a number, in place."""


class RMSNormConfig(Config):
    """x / rms(x) * weight (arXiv 1910.07467).

    eps: added to the mean square. centered: 1 is added to the stored weight, which is around zero,
        as in Gemma.
    """

    kind: Literal["rms"] = "rms"
    eps: PositiveFloat = 1e-5
    centered: bool = False

    def build(self, width: int) -> RMSNorm:
        return RMSNorm(width, self.eps, self.centered)


class RMSNorm(Norm):
    """x / rms(x) * weight."""

    def __init__(self, width: int, eps: float = 1e-5, centered: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps, self.centered = eps, centered

    def reset(self) -> None:
        self.weight.fill_(0.0 if self.centered else 1.0)

    def rescale(self, factor: Tensor | float) -> None:
        self.weight.data = rescaled(self.weight.data, factor, self.centered)

    def forward(self, x: Tensor) -> Tensor:
        weight = 1.0 + self.weight.float() if self.centered else self.weight.float()
        return F.rms_norm(x.float(), (x.shape[-1],), weight, self.eps).to(x.dtype)


def rescaled(weight: Tensor, factor: Tensor | float, centered: bool) -> Tensor:
    """The weight of a norm with `factor` times the output; centered: as in RMSNormConfig."""
    return (weight + 1) * factor - 1 if centered else weight * factor


class LayerNormConfig(Config):
    """(x - mean) / std * weight + bias (arXiv 1607.06450).

    eps: added to the variance. bias: whether there is one.
    """

    kind: Literal["layer"] = "layer"
    eps: PositiveFloat = 1e-5
    bias: bool = True

    def build(self, width: int) -> LayerNorm:
        return LayerNorm(width, self.eps, self.bias)


class LayerNorm(Norm):
    """(x - mean) / std * weight + bias."""

    def __init__(self, width: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        self.eps = eps

    def reset(self) -> None:
        self.weight.fill_(1.0)
        if self.bias is not None:
            self.bias.zero_()

    def rescale(self, factor: Tensor | float) -> None:
        self.weight.data = self.weight.data * factor
        if self.bias is not None:
            self.bias.data = self.bias.data * factor

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        y = F.layer_norm(x.float(), (x.shape[-1],), self.weight.float(), bias, self.eps)
        return y.to(x.dtype)


NormConfig = RMSNormConfig | LayerNormConfig
Normalization = one_of(NormConfig)
