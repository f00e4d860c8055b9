"""Attention through torch's FlexAttention (arXiv 2412.05496), compiled.

Scores are changed and masked inside the kernel, so no matrix of scores is in memory, and blocks
without a visible key are skipped. On a CPU it has no backward and no sinks.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    AuxRequest,
    create_block_mask,
    flex_attention,
)

from culm.model.context import Context
from culm.model.score_rule import ScoreRule

_compiled = torch.compile(flex_attention, fullgraph=True)  # an error instead of the slow form


def flex(q: Tensor, k: Tensor, v: Tensor, context: Context, rule: ScoreRule) -> Tensor:
    """q: (B, H, T, D); k: (B, K, T, D), v: (B, K, T, Dv) -> (B, H, T, Dv).

    Raises:
        NotImplementedError: gradients on a CPU.
    """
    if q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad:
        raise NotImplementedError("FlexAttention has no backward on a CPU")
    B, _, T, _ = q.shape
    documents, positions = context.documents, context.positions

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        mask = i >= j if context.causal else i >= 0
        if rule.window is not None:
            mask = mask & (((i - j).abs() < rule.window) | (positions[b, j] < rule.sink_tokens))
        return mask if documents is None else mask & (documents[b, i] == documents[b, j])

    def scored(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if rule.softcap is not None:
            score = rule.softcap * torch.tanh(score / rule.softcap)
        return score if rule.slopes is None else score - rule.slopes[h] * (j - i).abs()

    rows = None if documents is None and not rule.sink_tokens else B
    mask = create_block_mask(visible, rows, None, T, T, device=q.device.type)
    changed = scored if rule.softcap is not None or rule.slopes is not None else None
    kernel = partial(
        _compiled, q, k, v, changed, mask, scale=rule.scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    if rule.sink_logits is None:
        return kernel()
    out, aux = kernel(return_aux=AuxRequest(lse=True))  # type: ignore[arg-type]
    # A key without a value takes its share of every softmax: exp(lse) / (exp(lse) + exp(sink)).
    share = torch.sigmoid(aux.lse - rule.sink_logits.float().view(1, -1, 1))
    return out * share[..., None].to(out.dtype)
