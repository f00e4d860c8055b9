"""Rotary position embedding (arXiv 2104.09864), in the half-split layout, and its scaling.

Element i of a head is paired with element i + D/2. Checkpoints in the interleaved layout are
permuted when they are read (`culm.convert`).

A model that was trained on `original` tokens can read longer contexts when its pairs rotate more
slowly. The kinds of `RopeScaling` differ in the pairs that they slow down:

    linear    all pairs, by the factor                                         (arXiv 2306.15595)
    ntk       the slowest by the factor, the fastest not at all: by a larger base
    llama3    pairs with less than `low` turns in the original context, as in Llama 3.1
    yarn      the same with a ramp; attention also becomes a little sharper    (arXiv 2309.00071)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from culm.config import Config, one_of


def frequencies(base: float, head_dim: int) -> Tensor:
    """(D/2,) fp64: the angle of each pair between two tokens in radians, base^(-2i/D)."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    return base**-exponent


class RopeScaling(Config, ABC):
    """factor: new context length divided by the old one."""

    factor: float = Field(ge=1)

    @property
    def magnitude(self) -> float:
        """Factor of cosines and sines."""
        return 1.0

    @abstractmethod
    def frequencies(self, base: float, head_dim: int) -> Tensor:
        """(D/2,) fp64 radians per token."""


class LinearScaling(RopeScaling):
    """factor: new context length divided by the old one."""

    kind: Literal["linear"] = "linear"

    def frequencies(self, base: float, head_dim: int) -> Tensor:
        return frequencies(base, head_dim) / self.factor


class NTKScaling(RopeScaling):
    """factor: new context length divided by the old one; base grows by factor^(D / (D - 2))."""

    kind: Literal["ntk"] = "ntk"

    def frequencies(self, base: float, head_dim: int) -> Tensor:
        return frequencies(base * self.factor ** (head_dim / (head_dim - 2)), head_dim)


class Llama3Scaling(RopeScaling):
    """original: tokens of the old context. low: pairs with fewer turns in it are slowed by the
    factor. high: pairs with more turns are not slowed, and those between smoothly.
    """

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(8.0, ge=1)
    low: PositiveFloat = 1.0
    high: PositiveFloat = 4.0
    original: PositiveInt = 8192

    @model_validator(mode="after")
    def _ordered(self) -> Llama3Scaling:
        if self.low >= self.high:
            raise ValueError(f"low: {self.low} is not less than high={self.high}")
        return self

    def frequencies(self, base: float, head_dim: int) -> Tensor:
        plain = frequencies(base, head_dim)
        turns = self.original * plain / (2 * math.pi)
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return plain * kept + plain / self.factor * (1 - kept)


class YaRNScaling(RopeScaling):
    """original: tokens of the old context. fast: pairs with more turns in it stay. slow: pairs with
        fewer turns are slowed down by the factor, and those between by a ramp over the pairs.
    attention: factor of cosines and sines; 0.1 ln(factor) + 1 if not given. truncate: the ramp
    starts and ends at integer pairs.
    """

    kind: Literal["yarn"] = "yarn"
    original: PositiveInt
    fast: PositiveFloat = 32.0
    slow: PositiveFloat = 1.0
    attention: PositiveFloat | None = None
    truncate: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> YaRNScaling:
        if self.slow >= self.fast:
            raise ValueError(f"slow: {self.slow} is not less than fast={self.fast}")
        return self

    @property
    def magnitude(self) -> float:
        return 0.1 * math.log(self.factor) + 1.0 if self.attention is None else self.attention

    def frequencies(self, base: float, head_dim: int) -> Tensor:
        first, last = (self._pair(turns, base, head_dim) for turns in (self.fast, self.slow))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        pairs = torch.arange(head_dim // 2, dtype=torch.float64)
        slowed = ((pairs - first) / max(last - first, 1e-3)).clamp(0, 1)
        plain = frequencies(base, head_dim)
        return plain / self.factor * slowed + plain * (1 - slowed)

    def _pair(self, turns: float, base: float, head_dim: int) -> float:
        """The pair with this many turns in the original context."""
        longest = math.log(self.original / (turns * 2 * math.pi))
        return head_dim * longest / (2 * math.log(base))


Scaling = one_of(LinearScaling | NTKScaling | Llama3Scaling | YaRNScaling)


class Rope(Config):
    """base: the slowest pair makes one turn in about 2 pi * base tokens.

    fraction: of a head's elements, the first ones, that are rotated (as Pythia).
    scaling: extends the context beyond that of training.
    """

    base: PositiveFloat = 10_000.0
    fraction: float = Field(1.0, gt=0, le=1)
    scaling: Scaling | None = None  # type: ignore[valid-type]

    def rotary_dim(self, head_dim: int, setting: str = "rope.fraction") -> int:
        """Number of rotated elements of a head.

        Raises:
            ValueError: it is odd, so the elements cannot be paired.
        """
        count = int(head_dim * self.fraction)
        if count < 2 or count % 2:
            raise ValueError(
                f"{setting}: rotary embedding rotates pairs of a head's elements, but {count} of "
                f"{head_dim} are to be rotated; choose an even number"
            )
        return count

    def build(self, head_dim: int) -> Rotation:
        return Rotation(self, head_dim)

    def frequencies(self, head_dim: int) -> Tensor:
        """(D/2,) fp64 radians per token."""
        if self.scaling is None:
            return frequencies(self.base, head_dim)
        return self.scaling.frequencies(self.base, head_dim)


class Rotation(nn.Module):
    """Positions (B, T) to cosines and sines (B, T, 1, D/2), in fp32."""

    def __init__(self, config: Rope, head_dim: int) -> None:
        super().__init__()
        self.config, self.head_dim = config, head_dim
        self.magnitude = 1.0 if config.scaling is None else config.scaling.magnitude
        self.frequencies: Tensor
        self.register_buffer("frequencies", self._frequencies(), persistent=False)

    def _frequencies(self) -> Tensor:
        return self.config.frequencies(self.head_dim).float()

    def reset(self) -> None:
        """Fill the buffer of a module that was built on the meta device."""
        self.frequencies = self._frequencies().to(self.frequencies.device)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[..., None, None].float() * self.frequencies
        return angles.cos() * self.magnitude, angles.sin() * self.magnitude


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """x: (B, T, H, D) rotated by the angles of its positions, in fp32; result in the dtype of x.

    If there are angles for fewer pairs, the last elements are not rotated.
    """
    cos, sin = rotation
    size = 2 * cos.shape[-1]
    first, second = x[..., :size].float().chunk(2, dim=-1)
    parts = (first * cos - second * sin, second * cos + first * sin)
    if size == x.shape[-1]:
        return torch.cat(parts, dim=-1).to(x.dtype)
    return torch.cat((*parts, x[..., size:].float()), dim=-1).to(x.dtype)
