"""Sums over the logits of learned tokens, a chunk at a time: they live for one chunk alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from culm.model.logprobs import CHUNK


def learned_states(hidden: Tensor, targets: Tensor) -> Tensor:
    """(N, E), the states (B, T, E) of tokens with a target."""
    return hidden.flatten(0, 1)[(targets >= 0).flatten().nonzero()[:, 0]]


def over_chunks(
    compute: Callable[..., tuple[Tensor, ...]], hidden: Tensor, targets: Tensor, *others: Tensor
) -> tuple[Tensor, ...]:
    """The sum of what `compute` gives for the learned states, chunk by chunk.

    compute: takes (n, E) states, and those of `others` at the same tokens. What it computes is
    computed again in the backward, so that nothing of the size of logits is stored.
    """
    states = [learned_states(one, targets) for one in (hidden, *others)]
    totals: list[Tensor] | None = None
    for parts in zip(*(one.split(CHUNK) for one in states), strict=True):
        found = checkpoint(compute, *parts, use_reentrant=False)
        totals = (
            list(found) if totals is None else [a + b for a, b in zip(totals, found, strict=True)]
        )
    assert totals is not None  # no states are one empty chunk
    return tuple(totals)
