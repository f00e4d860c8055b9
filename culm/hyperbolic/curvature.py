"""Curvature as a parameter: fixed, or learned with the points."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Curvature(nn.Module):
    """c > 0, stored as its logarithm, so that every step leaves it positive.

    value: at the start. learned: whether gradients change it. fp64: with the precision of points.
    """

    def __init__(self, value: float, learned: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        log = torch.tensor(math.log(value), dtype=dtype)
        self.log = nn.Parameter(log, requires_grad=learned)

    def forward(self) -> Tensor:
        """() the curvature c."""
        return self.log.exp()
