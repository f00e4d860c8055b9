"""Attention as the context allows it, causal or not, by the backend that was chosen.

The attention backend is set from outside (`Trunk.set_backend`), never guessed in a forward:

    sdpa    torch's scaled_dot_product_attention: flash kernels on a GPU
    flex    torch's FlexAttention, compiled: every rule without a matrix of scores
    flash2  FlashAttention on a GPU, documents as sequences: no mask in memory
    flash3  its third version, on the GPUs that support it
    flash_cpu   its algorithm on a CPU, in bf16; what a model computes in fp32 all the same, as a
                part that decides where patches end, is for blocks
    blocks  queries in blocks, each with its causal prefix: every rule, on every device; on a CPU
            this skips up to half of the masked scores, which sdpa computes, and torch.compile
            fuses it. Over a cache, which is not compiled, the blocks use sdpa on a CPU
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.model.context import Context
from culm.model.flash_cpu import flash_cpu
from culm.model.score_rule import Backend, ScoreRule

LARGEST_BLOCK = 512  # queries: with a limit, the memory of scores is linear in the length


def serves(backend: Backend, rule: ScoreRule, device: torch.device) -> bool:
    """Whether a backend supports this rule on a device."""
    if backend == "blocks":
        return True
    if backend == "flex":  # its CPU kernel does not return what a sink is weighted against
        return rule.sink_logits is None or device.type != "cpu"
    if backend == "flash_cpu" and device.type not in ("cpu", "meta"):
        return False
    plain = rule.softcap is None and rule.slopes is None and rule.sink_logits is None
    return plain and (backend == "sdpa" or not rule.sink_tokens)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: Context,
    rule: ScoreRule = ScoreRule(),
    backend: Backend = "blocks",
) -> Tensor:
    """Attention within rows (arXiv 1706.03762), grouped queries (arXiv 2305.13245).

    q: (B, T, H, D); k: (B, T, K, D), v: (B, T, K, Dv) with H a multiple of K.
    Returns (B, T, H, Dv). A query sees keys of its own document only, and, if the context is
    causal, none after it.

    Raises:
        ValueError: the backend does not support the rule.
    """
    if not serves(backend, rule, q.device):
        raise ValueError(f"backend: {backend} does not support {rule} here; blocks does")
    if context.sequence is not None:
        return context.sequence.attend(q, k, v, rule, backend)
    if backend == "flash_cpu":
        if q.dtype == torch.bfloat16:
            return flash_cpu(q, k, v, context, rule)
        backend = "blocks"
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, D)
    if backend == "flex":
        from culm.model.flex import flex

        out = flex(q, k, v, context, rule)
    elif backend in ("flash2", "flash3"):
        from culm.model.flash import flash

        out = flash(q, k, v, context, rule)
    elif backend == "blocks":
        out = _in_blocks(q, k, v, context, rule)
    elif context.documents is None and rule.window is None:
        out = _sdpa(q, k, v, None, rule, context.causal)
    else:
        out = _sdpa(q, k, v, visible(0, q.shape[2], 0, q.shape[2], context, rule), rule)
    return out.transpose(1, 2)


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rule: ScoreRule, causal: bool = True
) -> Tensor:
    """q: (B, H, T, D). causal: if there is no mask. On the meta device, where a plan counts memory,
    it is the flash kernel of GPUs, which stores no scores; PyTorch itself takes matmuls there.
    """
    if q.is_meta and q.shape[3] == v.shape[3]:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(q, k, v, 0.0, True, scale=rule.scale)[0]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=rule.scale,
        enable_gqa=True,
    )  # fmt: skip


def attention_weights(
    q: Tensor, k: Tensor, rule: ScoreRule = ScoreRule(), causal: bool = True
) -> Tensor:
    """(B, H, T, T) fp32: the weights by which `attend` sums the values, for inspection.

    q: (B, T, H, D); k: (B, T, K, D), with one document per row.
    """
    q, k = (x.transpose(1, 2).float() for x in (q, k))
    positions = torch.arange(q.shape[2], device=q.device).expand(q.shape[0], -1)
    context = Context(positions, causal=causal)
    mask = visible(0, q.shape[2], 0, q.shape[2], context, rule)
    eye = torch.eye(q.shape[2], device=q.device).expand(*k.shape[:3], -1)
    return grouped(q, k, eye, mask, rule, away_of(0, q.shape[2], 0, q.shape[2], q.device))


def attend_from(
    start: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: Context,
    rule: ScoreRule,
    backend: Backend,
) -> Tensor:
    """`attend` of the queries (B, T, H, D) of a row from index `start` on: by sdpa, where a backend
    of a GPU was chosen and sdpa supports the rule.

    k, v, context: of the whole row.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if backend in ("blocks", "flash_cpu") or not serves("sdpa", rule, q.device):
        return _in_blocks(q, k, v, context, rule, start).transpose(1, 2)
    end = start + q.shape[2]
    k, v = k[:, :, :end], v[:, :, :end]
    return _sdpa(q, k, v, visible(start, end, 0, end, context, rule), rule).transpose(1, 2)


def _in_blocks(
    q: Tensor, k: Tensor, v: Tensor, context: Context, rule: ScoreRule, at: int = 0
) -> Tensor:
    """at: the index of the first query in the row."""
    length = q.shape[2]
    size = max(1, -(-length // _blocks(length)))
    outs = []
    for start in range(at, at + max(1, length), size):
        end = min(start + size, at + length)
        far = rule.window is None or rule.sink_tokens > 0 or not context.causal
        first = 0 if far else max(0, start - rule.window + 1)  # type: ignore[operator]
        last = end if context.causal else k.shape[2]
        mask = visible(start, end, first, last, context, rule)
        away = None if rule.slopes is None else away_of(start, end, first, last, q.device)
        keys, values = k[:, :, first:last], v[:, :, first:last]
        queries = q[:, :, start - at : end - at]
        outs.append(grouped(queries, keys, values, mask, rule, away))
    return torch.cat(outs, dim=2)


def _blocks(length: int) -> int:
    # Measured on a 2-core AVX-512 CPU; see docs/log.md.
    if length < 256:
        return 2 if length >= 64 else 1
    return max(min(16, max(4, length // 128)), -(-length // LARGEST_BLOCK))


def grouped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, rule: ScoreRule, away: Tensor | None
) -> Tensor:
    """Softmax attention with the query heads of a group folded into rows.

    q: (B, H, T, D); k: (B, K, S, D), v: (B, K, S, Dv). mask: broadcastable to (B, 1, T, S), True
    is visible. away: `away_of`, in the shape of the mask, for slopes.
    """
    B, H, T, _ = q.shape
    K, S = k.shape[1], k.shape[2]
    scores = scores_of(q, k, mask, rule, away)
    if rule.sink_logits is not None:
        sinks = rule.sink_logits.float().view(1, K, -1, 1, 1).expand(B, -1, -1, T, 1)
        weights = torch.cat((scores, sinks), dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    weights = weights.to(v.dtype).reshape(B, K, H // K * T, S)
    return (weights @ v).view(B, H, T, v.shape[-1])


def scores_of(q: Tensor, k: Tensor, mask: Tensor, rule: ScoreRule, away: Tensor | None) -> Tensor:
    """(B, K, H / K, T, S) fp32, -inf where the mask is False; arguments as in `grouped`."""
    B, H, T, D = q.shape
    K, S = k.shape[1], k.shape[2]
    scale = D**-0.5 if rule.scale is None else rule.scale
    folded = (q * scale).reshape(B, K, H // K * T, D)
    scores = (folded @ k.transpose(-1, -2)).view(B, K, H // K, T, S).float()
    if rule.softcap is not None:
        scores = (scores / rule.softcap).tanh() * rule.softcap
    if rule.slopes is not None and away is not None:
        scores = scores + rule.slopes.view(1, K, -1, 1, 1) * away[:, :, None]
    return scores.masked_fill(~mask[:, :, None], float("-inf"))


def away_of(start: int, end: int, first: int, last: int, device: torch.device) -> Tensor:
    """(1, 1, end - start, last - first): how far each key is from each query, 0 or less."""
    queries = torch.arange(start, end, device=device)[:, None]
    return -(torch.arange(first, last, device=device)[None] - queries).abs()[None, None]


def visible(
    start: int, end: int, first: int, last: int, context: Context, rule: ScoreRule
) -> Tensor:
    """(B or 1, 1, end - start, last - first): which keys the queries start..end see."""
    device = context.positions.device
    queries = torch.arange(start, end, device=device)[:, None]
    keys = torch.arange(first, last, device=device)[None]
    mask = (
        (keys <= queries)[None] if context.causal else (keys >= 0)[None].expand(1, len(queries), -1)
    )
    if rule.window is not None:
        near = ((queries - keys).abs() < rule.window)[None]
        if rule.sink_tokens:
            near = near | (context.positions[:, None, first:last] < rule.sink_tokens)
        mask = mask & near
    documents = context.documents
    if documents is not None:
        mask = mask & (documents[:, start:end, None] == documents[:, None, first:last])
    return mask[:, None]
