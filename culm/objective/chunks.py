"""Sums over the logits of learned tokens, a chunk at a time: they live for one chunk alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from culm.model.logprobs import CHUNK


def learned_rows(targets: Tensor) -> Tensor:
    """(N,) int64, where the flattened targets (B, T) are learned."""
    return (targets >= 0).flatten().nonzero()[:, 0]


def over_chunks(
    compute: Callable[..., tuple[Tensor, ...]], rows: Tensor, *states: Tensor
) -> tuple[Tensor, ...]:
    """The sums of what `compute` gives for some rows of the states (B, T, E), chunk by chunk.

    compute: takes (n, E) of each. It is called again in the backward, so that nothing of the size
    of logits is stored.
    """
    chosen = [one.flatten(0, 1)[rows] for one in states]
    totals: list[Tensor] | None = None
    for parts in zip(*(one.split(CHUNK) for one in chosen), strict=True):
        found = checkpoint(compute, *parts, use_reentrant=False)
        totals = (
            list(found) if totals is None else [a + b for a, b in zip(totals, found, strict=True)]
        )
    assert totals is not None  # no states are one empty chunk
    return tuple(totals)
