"""Where patches end, and how to get from bytes to patches and back.

byte      T h e _ b i g _ t o           a patch ends where the byte is known after which it ends, so
ends      x     x       x               no byte depends on a later one
patch     0 - - 1 - - - 2 - -           the patch that a byte reads from: the one that ended last
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MULTIPLE = 8  # of which the number of patches in a batch is: few shapes


@dataclass(frozen=True)
class Patches:
    """The patches that the bytes of a forward end, N at most in a row.

    columns: (B, N) int64, the byte that ends each; those after the last patch have that of the last
    byte. counts: (B,) patches of each row. positions: (B, N), of each patch in its document; over a
    cache also its entry. numbers: (B, T), the patch that ended last at each byte: its place in the
    row, or its entry. documents: as in `Context`. ends: (B,) the position after the last patch,
    over a cache.
    """

    columns: Tensor
    counts: Tensor
    positions: Tensor
    numbers: Tensor
    documents: Tensor | None = None
    ends: Tensor | None = None


def columns_of(ends: Tensor, bytes_per_patch: float | None = None) -> tuple[Tensor, Tensor]:
    """(B, N) columns at which `ends` (B, T) is True, filled up with T - 1, and (B,) their counts.

    bytes_per_patch: as in `Reading.patches`.
    """
    rows, length = ends.shape
    counts = ends.sum(1)
    if bytes_per_patch is not None:
        most = math.ceil(length / bytes_per_patch)
    else:
        most = int(counts.max()) if rows else 0
        most = min(length, -(-most // MULTIPLE) * MULTIPLE) if length > 1 else most
    places = torch.arange(length, device=ends.device).expand(rows, -1)
    order = (ends.cumsum(1) - 1).where(ends, most).clamp_max(most)
    columns = torch.full((rows, most + 1), length - 1, device=ends.device)
    return columns.scatter(1, order, places)[:, :most], counts


def taken(values: Tensor, places: Tensor) -> Tensor:
    """(B, ..., D): the rows of values (B, S, ...) at places (B, ...) of the second axis.

    Its backward adds up whole rows, which is several times faster on a CPU than that of indexing.
    """
    size = values.shape[1]
    offsets = torch.arange(values.shape[0], device=values.device) * size
    index = places + offsets.view(-1, *[1] * (places.dim() - 1))
    found = values.flatten(0, 1).index_select(0, index.flatten())
    return found.view(*places.shape, *values.shape[2:])
