"""Concepts to about unit scale in every dimension, and back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from culm.model.init import CustomInit
from culm.model.rule_updated import RuleUpdatedBuffers

IQR_OF_NORMAL = 1.3489795  # so that the scale of normal numbers is their standard deviation
LEAST = 1e-3  # scale of a dimension that is constant


class Normalizer(nn.Module, CustomInit, RuleUpdatedBuffers):
    """x: (..., C) -> (x - center) / scale, with the median and the interquartile range / 1.349 of
    each dimension, which outliers hardly move ("gaussian robust" in arXiv 2412.08821).
    """

    rule_updated = ("center", "scale")
    center: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.empty(dim))
        self.register_buffer("scale", torch.empty(dim))

    def init_weights(self, generator: Callable[[str], torch.Generator], std: float) -> None:
        self.center.zero_()
        self.scale.fill_(1.0)

    def fit(self, concepts: Tensor) -> None:
        """concepts: (N, C), of training data."""
        quartiles = torch.tensor([0.25, 0.5, 0.75], device=concepts.device)
        low, middle, high = concepts.float().quantile(quartiles, dim=0)
        self.center.copy_(middle)
        self.scale.copy_(((high - low) / IQR_OF_NORMAL).clamp_min(LEAST))

    def forward(self, concepts: Tensor) -> Tensor:
        return (concepts - self.center) / self.scale

    def inverse(self, normalized: Tensor) -> Tensor:
        """The concepts (..., C) of normalised ones."""
        return normalized * self.scale + self.center
