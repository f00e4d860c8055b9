"""Losses that keep the load of experts even, as sums over N tokens; padding has rows of zeros.

shares: (N, experts), the router's scores, normalised to sum to one; they carry the gradient.
assigned: (N, experts), 1 where a token goes to an expert, without gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from culm.model.context import LayerContext


def switch_loss(shares: Tensor, assigned: Tensor) -> Tensor:
    """N * experts * sum over e of f_e P_e (arXiv 2101.03961), () fp32; the optimum is 1 per token.

    f: fractions of the assignments, which sum to one for any top_k; P: mean shares.
    """
    counts = assigned.sum(0)
    load = counts / counts.sum().clamp_min(1)
    return shares.shape[1] * (shares @ load).sum()


def sequence_loss(shares: Tensor, assigned: Tensor, sequences: Tensor) -> Tensor:
    """The same with f and P of each sequence (arXiv 2412.19437, section 2.1.2).

    sequences: (N,) int64 below N, the sequence of each token.
    """
    counts = torch.zeros_like(assigned).index_add(0, sequences, assigned)
    load = counts / counts.sum(-1, keepdim=True).clamp_min(1)
    return shares.shape[1] * (shares * load[sequences]).sum()


def z_loss(logits: Tensor, real: Tensor | None) -> Tensor:
    """Squared log-sum-exp of the router's logits (arXiv 2202.08906), () fp32.

    logits: (N, experts). real: (N,), tokens that are not padding; None: all.
    """
    squares = logits.logsumexp(-1).square()
    return squares.sum() if real is None else (squares * real).sum()


def sequences_of(context: LayerContext) -> Tensor:
    """The document of each token, numbered over all rows: (B * T,) int64 below B * T."""
    rows, length = context.positions.shape
    first = torch.arange(rows, device=context.positions.device)[:, None] * length
    number = context.documents
    return (first.expand(rows, length) if number is None else first + number).flatten()
