"""Attention through torch's FlashAttention 2 (arXiv 2307.08691) or 3 (arXiv 2407.08608).

It needs a GPU and bf16 or fp16. Documents become sequences of one long row, so nothing is computed
across their borders, and no mask is in memory. Version 3 needs the package `flash_attn_interface`,
and replaces version 2 in the whole process.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    restore_flash_attention_impl,
)
from torch.nn.attention.varlen import varlen_attn

from culm.model.context import Context
from culm.model.score_rule import ScoreRule


def activate(version: int) -> None:
    """Switch torch's flash kernels to a version; 2 is torch's own.

    Raises:
        ImportError: the package of this version is not installed.
    """
    wanted = None if version == 2 else f"FA{version}"
    if current_flash_attention_impl() == wanted:
        return
    if wanted is None:
        restore_flash_attention_impl()
    else:
        activate_flash_attention_impl(wanted)


def flash(q: Tensor, k: Tensor, v: Tensor, context: Context, rule: ScoreRule) -> Tensor:
    """q: (B, H, T, D); k, v: (B, K, T, D) -> (B, H, T, D)."""
    rows, heads, length, _ = q.shape
    borders = _borders(context, rows, length)
    flat_q, flat_k, flat_v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    back = -1 if rule.window is None else rule.window - 1
    out = varlen_attn(
        flat_q, flat_k, flat_v, borders, borders, length, length, scale=rule.scale,
        window_size=(back, 0 if context.causal else back),  # keys back and ahead
        enable_gqa=heads != k.shape[1],
    )  # fmt: skip
    assert isinstance(out, Tensor)  # no other output was requested
    return out.unflatten(0, (rows, length)).transpose(1, 2)


def _borders(context: Context, rows: int, length: int) -> Tensor:
    """(N + 1,) int32: the starts of N documents when all rows are joined, and the end."""
    device = context.positions.device
    starts = torch.zeros(rows, length, dtype=torch.bool, device=device)
    starts[:, 0] = True
    if context.documents is not None:
        starts[:, 1:] = context.documents[:, 1:] != context.documents[:, :-1]
    end = torch.tensor([rows * length], device=device)
    return torch.cat((starts.flatten().nonzero()[:, 0], end)).to(torch.int32)
