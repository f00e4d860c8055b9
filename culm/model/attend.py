"""Causal attention over what the context allows; the one place that chooses how it is computed.

The attention backend is set from outside (`Transformer.backend`), never guessed in a forward:

    sdpa    torch's scaled_dot_product_attention: flash kernels on a GPU
    blocks  queries in blocks, each against its causal prefix: on a CPU, where sdpa computes hidden
            scores too, this skips up to half of them, and fuses under torch.compile
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Backend = Literal["sdpa", "blocks"]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Tensor | None = None,
    window: int | None = None,
    backend: Backend = "sdpa",
) -> Tensor:
    """Causal attention within rows (arXiv 1706.03762), grouped queries (arXiv 2305.13245).

    q: (B, T, H, D); k, v: (B, T, K, D) with H a multiple of K. Returns (B, T, H, D).
    documents: (B, T), a query sees keys of its own document only.
    window: how many positions back a query may look, itself included; None is all.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, D)
    if backend == "blocks":
        out = _in_blocks(q, k, v, documents, window)
    elif documents is None and window is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    else:
        mask = _visible(0, q.shape[2], 0, q.shape[2], documents, window, q.device)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return out.transpose(1, 2)


def attend_cached(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    window: int | None = None,
    backend: Backend = "sdpa",
) -> Tensor:
    """Attention of new tokens over a cache whose entry j holds position j.

    q: (B, T, H, D) at `positions` (B, T); k, v: (B, K, S, D). Returns (B, T, H, D).
    """
    keys_at = torch.arange(k.shape[2], device=k.device)
    queries_at = positions[:, None, :, None]
    # (B, 1, T, S): comparing keeps it in bools, where a difference would take 8 bytes each.
    mask = keys_at <= queries_at
    if window is not None:
        mask = mask & (keys_at > queries_at - window)
    q = q.transpose(1, 2)
    # With one query a row the CPU flash kernel is 1.2 to 2.7 times slower than two products.
    if backend == "blocks" or (q.shape[2] == 1 and q.device.type == "cpu"):
        out = _grouped(q, k, v, mask)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return out.transpose(1, 2)


def attention_weights(q: Tensor, k: Tensor, window: int | None = None) -> Tensor:
    """(B, H, T, T) fp32: what `attend` multiplies the values with, to be looked at."""
    q, k = (x.transpose(1, 2).float() for x in (q, k))
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    mask = _visible(0, q.shape[2], 0, q.shape[2], None, window, q.device)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return scores.masked_fill(~mask, float("-inf")).softmax(-1)


def _in_blocks(
    q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, window: int | None
) -> Tensor:
    length = q.shape[2]
    size = -(-length // _blocks(length))
    outs = []
    for start in range(0, length, size):
        end = min(start + size, length)
        first = 0 if window is None else max(0, start - window + 1)
        mask = _visible(start, end, first, end, documents, window, q.device)
        outs.append(_grouped(q[:, :, start:end], k[:, :, first:end], v[:, :, first:end], mask))
    return torch.cat(outs, dim=2)


def _blocks(length: int) -> int:
    # Measured on a 2-core AVX-512 CPU; see docs/log.md.
    if length < 256:
        return 2 if length >= 64 else 1
    return min(16, max(4, length // 128))


def _grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention with the query heads of a group folded into rows.

    q: (B, H, T, D); k, v: (B, K, S, D); mask: broadcastable to (B, 1, T, S), True is visible.
    """
    B, H, T, D = q.shape
    K, S = k.shape[1], k.shape[2]
    folded = (q * D**-0.5).reshape(B, K, H // K * T, D)
    scores = (folded @ k.transpose(-1, -2)).view(B, K, H // K, T, S)
    scores = scores.float().masked_fill(~mask[:, :, None], float("-inf"))
    weights = scores.softmax(-1).to(v.dtype).view(B, K, H // K * T, S)
    return (weights @ v).view(B, H, T, D)


def _visible(
    start: int,
    end: int,
    first: int,
    last: int,
    documents: Tensor | None,
    window: int | None,
    device: torch.device,
) -> Tensor:
    """(B or 1, 1, end - start, last - first): which keys the queries start..end may see."""
    queries = torch.arange(start, end, device=device)[:, None]
    keys = torch.arange(first, last, device=device)[None]
    mask = keys <= queries
    if window is not None:
        mask = mask & (queries - keys < window)
    if documents is None:
        return mask[None, None]
    same = documents[:, start:end, None] == documents[:, None, first:last]
    return (same & mask)[:, None]
