"""Embeddings of the last bytes, by their hash (BLT, arXiv 2412.09871, section 3.2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from culm.bytelatent.reading import Reading

PRIMES = (1_000_000_007, 998_244_353, 1_000_000_009, 1_000_000_021, 1_000_000_033, 1_000_000_087)


class NgramEmbedding(nn.Module):
    """(B, T) bytes -> (B, T, E): the sum of a row for each size n and each hash function.

    The row is that of sum_j b[t - j] p^j mod buckets, j = 0 to n - 1, in 64-bit integers that
    wrap; bytes before the document count as 0.
    """

    def __init__(self, sizes: Sequence[int], functions: int, buckets: int, width: int) -> None:
        super().__init__()
        self.sizes, self.primes, self.buckets = tuple(sizes), PRIMES[:functions], buckets
        self.tables = nn.ModuleList(
            nn.Embedding(buckets, width) for _ in range(len(self.sizes) * functions)
        )

    def forward(self, reading: Reading) -> Tensor:
        rows = [row for prime in self.primes for row in self.rows(reading, prime)]
        found = [table(row) for table, row in zip(self.tables, rows, strict=True)]
        return torch.stack(found).sum(0)

    def rows(self, reading: Reading, prime: int) -> list[Tensor]:
        """The bucket (B, T) of the last n bytes, for each size n."""
        total, power, found = reading.tokens.clone(), 1, []
        for back in range(1, max(self.sizes) + 1):
            if back in self.sizes:
                found.append(total % self.buckets)
            power = (power * prime + 2**63) % 2**64 - 2**63  # wraps like the tensors
            total = total + reading.before("tokens", reading.tokens, back) * power
        return found
