"""What experts do while a batch is learned from, for the loop."""

from __future__ import annotations

from dataclasses import replace

import torch

from culm.batch import Batch, Loss
from culm.model.context import Context


def watching(batch: Batch) -> Context:
    """What every layer must know of a batch; what its experts do is written down."""
    return Context(batch.positions, batch.documents, padding=batch.padding, routings=[])


def with_experts(loss: Loss, context: Context) -> Loss:
    """The loss with the auxiliary losses of all layers, and how many tokens each expert got.

    counts: per layer with experts (experts + 1,), the last one those that were dropped.
    """
    if not context.routings:
        return loss
    return replace(
        loss,
        auxiliary=torch.stack([routing.loss for routing in context.routings]).sum(),
        counts=tuple(torch.cat((r.counts, r.dropped[None])) for r in context.routings),
    )
