"""Residual vector quantisation of concepts (arXiv 2107.03312), fitted by k-means."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from culm.model.init import CustomInit, generator
from culm.model.rule_updated import RuleUpdatedBuffers

ROUNDS = 25  # of k-means, for each codebook


class Codebooks(nn.Module, CustomInit, RuleUpdatedBuffers):
    """x: (..., C) -> codes (..., K), coarse to fine: each codebook quantises what the ones before
    it left.

    entries: (K, N, C).
    """

    rule_updated = ("entries",)
    entries: Tensor

    def __init__(self, codebooks: int, codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("entries", torch.empty(codebooks, codes, dim))

    def init_weights(self, generator: Callable[[str], torch.Generator], std: float) -> None:
        self.entries.zero_()

    @torch.no_grad()
    def fit(self, vectors: Tensor, seed: int) -> None:
        """k-means of the residuals (N, C) of one codebook after the other."""
        residuals = vectors.float()
        for level, entries in enumerate(self.entries):
            entries.copy_(kmeans(residuals, len(entries), generator(seed, f"codebook {level}")))
            residuals = residuals - entries[_nearest(residuals, entries)]

    def forward(self, vectors: Tensor) -> Tensor:
        """The codes (..., K) of vectors (..., C)."""
        residuals, codes = vectors, []
        for entries in self.entries:
            codes.append(_nearest(residuals, entries))
            residuals = residuals - entries[codes[-1]]
        return torch.stack(codes, -1)

    def parts(self, codes: Tensor) -> Tensor:
        """(..., K, C): the entry of each code; their sum is the vector."""
        levels = torch.arange(codes.shape[-1], device=codes.device)
        return self.entries[levels, codes]


def kmeans(vectors: Tensor, count: int, random: torch.Generator) -> Tensor:
    """(count, C) centres of vectors (N, C); a centre without vectors moves to a random one."""
    order = torch.randint(len(vectors), (count,), generator=random)
    if len(vectors) >= count:
        order = torch.randperm(len(vectors), generator=random)[:count]
    centres = vectors[order.to(vectors.device)].clone()
    for _ in range(ROUNDS):
        nearest = _nearest(vectors, centres)
        sizes = torch.bincount(nearest, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        other = torch.randint(len(vectors), (count,), generator=random).to(vectors.device)
        means = sums / sizes.clamp_min(1)[:, None]
        centres = torch.where(sizes[:, None] > 0, means, vectors[other])
    return centres


def _nearest(vectors: Tensor, entries: Tensor) -> Tensor:
    """(...): the number of the nearest entry (N, C) of each vector (..., C)."""
    distances = entries.square().sum(-1) - 2 * vectors @ entries.T
    return distances.argmin(-1)
