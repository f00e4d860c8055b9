"""Attention of new tokens over what a cache stores of earlier ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.model.attend import LARGEST_BLOCK, grouped, serves
from culm.model.score_rule import Backend, ScoreRule

CPU_BLOCK = 256  # queries: fewer masked scores are computed than in larger blocks
WIDENED = 4 << 20  # bytes of keys and values in fp32 that a CPU's cache holds


def attend_cached(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    at: Tensor,
    positions: Tensor,
    rule: ScoreRule = ScoreRule(),
    backend: Backend = "blocks",
    first: Tensor | None = None,
) -> Tensor:
    """Attention of new tokens over a cache.

    q: (B, T, H, D) at `positions` (B, T); k: (B, K, S, D), v: (B, K, S, Dv) with their positions
    `at`: (S,) of 0, 1, ... or (B, S), less than 0 for an empty entry. first: (B, T), the first
    position that each query sees. Returns (B, T, H, Dv) in the dtype of q, computed in fp32 if the
    cache has another one.
    """
    if k.dtype != q.dtype:  # so few rows at a time that their copies stay in the CPU's cache
        step = max(1, WIDENED // (4 * (k[0].numel() + v[0].numel())))
        parts = [slice(start, start + step) for start in range(0, len(q), step)]
        outs = [
            attend_cached(
                q[rows].float(), k[rows].float(), v[rows].float(),
                at if at.dim() == 1 else at[rows], positions[rows], rule, backend,
                None if first is None else first[rows],
            )
            for rows in parts
        ]  # fmt: skip
        return torch.cat(outs).to(q.dtype)
    q, outs, cpu = q.transpose(1, 2), [], q.device.type == "cpu"
    size = CPU_BLOCK if cpu else LARGEST_BLOCK
    for start in range(0, q.shape[2], size):
        part = slice(start, start + size)
        seen = k.shape[2]
        if at.dim() == 1 and q.shape[2] > size and cpu:
            # Keys after the block are not read. On a GPU this would wait for the device.
            seen = min(seen, int(positions[:, part].max()) + 1)
        keys, values, places = k[:, :, :seen], v[:, :, :seen], at[..., :seen]
        queries, queries_at = q[:, :, part], positions[:, part]
        since = None if first is None else first[:, part]
        outs.append(_over_cache(queries, keys, values, places, queries_at, rule, backend, since))
    heads = outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)
    return heads.transpose(1, 2)


def _over_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    at: Tensor,
    positions: Tensor,
    rule: ScoreRule,
    backend: Backend,
    first: Tensor | None,
) -> Tensor:
    """`attend_cached` of one block of queries (B, H, T, D) -> (B, H, T, Dv)."""
    ring, at = at.dim() == 2, at.view(-1, 1, 1, at.shape[-1])
    # The CPU flash kernel needs values as wide as keys; with one query per row it is 1.2 to 2.7
    # times slower than two matmuls, and with more 1.2 to 2.6 times faster.
    cpu = q.device.type == "cpu"
    flash = q.shape[2] > 1 and q.shape[3] == v.shape[3] if cpu else backend != "blocks"
    flash = flash and serves("sdpa", rule, q.device)
    from_start = rule.window is None and first is None
    if flash and not ring and from_start and q.shape[2] == k.shape[2]:
        # As many queries as entries: these are the first tokens, and no mask needs to be made.
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=rule.scale, enable_gqa=True
        )
    queries_at = positions[:, None, :, None]
    # (B, 1, T, S): comparisons take one byte each, where differences would take 8.
    mask = at <= queries_at
    if rule.window is not None:
        mask = mask & ((at > queries_at - rule.window) | (at < rule.sink_tokens))
    if first is not None:
        mask = mask & (at >= first[:, None, :, None])
    if ring:  # its entries may be empty
        mask = mask & (at >= 0)
    if not flash:
        away = None if rule.slopes is None else at - queries_at
        return grouped(q, k, v, mask, rule, away)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=rule.scale, enable_gqa=True
    )
