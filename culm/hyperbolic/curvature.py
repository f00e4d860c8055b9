"""Curvature as a parameter: fixed, or learned with the points."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Curvature(nn.Module):
    """c > 0, learned by its logarithm, so that every step leaves it positive.

    value: at the start, or for good. learned: whether it is a parameter. dtype: of that.
    """

    def __init__(self, value: float, learned: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.value = value
        self.log = nn.Parameter(torch.empty((), dtype=dtype)) if learned else None
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """As at the start."""
        if self.log is not None:
            self.log.fill_(math.log(self.value))

    def forward(self) -> Tensor | float:
        """The curvature c."""
        return self.value if self.log is None else self.log.exp()
