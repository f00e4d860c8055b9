"""Rotary position embedding (arXiv 2104.09864), in the half-split layout.

Element i of a head is paired with element i + D/2. Checkpoints in the interleaved layout are
permuted when they are read (`culm.convert`).
"""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from culm.config import Config


class Rope(Config):
    """base: the slowest pair turns once in about 2 pi * base tokens."""

    base: PositiveFloat = 10_000.0

    def build(self, head_dim: int) -> Rotation:
        return Rotation(self.base, head_dim)


class Rotation(nn.Module):
    """Positions (B, T) to cosines and sines (B, T, 1, D/2), in fp32."""

    def __init__(self, base: float, head_dim: int) -> None:
        super().__init__()
        self.base, self.head_dim = base, head_dim
        self.frequencies: Tensor
        self.register_buffer("frequencies", self._frequencies(), persistent=False)

    def _frequencies(self) -> Tensor:
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        return (self.base**-exponent).float()

    def reset(self) -> None:
        """Fill the buffer of a module that was built without memory."""
        self.frequencies = self._frequencies().to(self.frequencies.device)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[..., None, None].float() * self.frequencies
        return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """x: (B, T, H, D) turned by its position's angles; computed in fp32, given in x's dtype."""
    cos, sin = rotation
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
