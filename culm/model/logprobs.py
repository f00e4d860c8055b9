"""Log-probabilities of given tokens without ever holding all logits.

The logits of a large vocabulary are the largest tensor of a training step. Here they exist for one
chunk of tokens at a time, in the forward and again in the backward.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from culm.batch import IGNORED
from culm.model.linear import Linear

CHUNK = 1024  # tokens whose logits exist at once


class ChunkedLogprobs(torch.autograd.Function):
    """log softmax(hidden W^T / temperature)[target], computed chunk by chunk."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float):
        # hidden: (N, E), weight: (V, E), targets: (N,) -> (N,) fp32
        w = weight.to(hidden.dtype)
        logprobs, logsums = zip(
            *(
                _forward(h, w, t, temperature)
                for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
            ),
            strict=True,
        )
        logsum = torch.cat(logsums)
        ctx.save_for_backward(hidden, weight, targets, logsum)
        ctx.temperature = temperature
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor):
        hidden, weight, targets, logsum = ctx.saved_tensors  # type: ignore[attr-defined]
        w = weight.to(hidden.dtype)
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(w)
        pieces = (hidden, targets, logsum, grads[0], grad_hidden)
        for h, t, s, g, out in zip(*(p.split(CHUNK) for p in pieces), strict=True):
            d = _backward(h, w, t, s, g, ctx.temperature)  # type: ignore[attr-defined]
            torch.mm(d, w, out=out)
            grad_weight.addmm_(d.t(), h)
        return grad_hidden, grad_weight.to(weight.dtype), None, None


def _forward(h: Tensor, w: Tensor, t: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = _logits(h, w, temperature)
    logsum = logits.logsumexp(-1)
    picked = logits.gather(-1, t[:, None])[:, 0]
    return picked - logsum, logsum


def _logits(h: Tensor, w: Tensor, temperature: float) -> Tensor:
    logits = (h @ w.t()).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def _backward(h: Tensor, w: Tensor, t: Tensor, s: Tensor, g: Tensor, temperature: float) -> Tensor:
    g = g / temperature
    d = _logits(h, w, temperature).sub_(s[:, None]).exp_().mul_(-g[:, None])
    d.scatter_add_(-1, t[:, None], g[:, None])
    return d.to(h.dtype)


def logprobs_of(
    hidden: Tensor, head: torch.nn.Module, targets: Tensor, temperature: float = 1.0
) -> Tensor:
    """Natural-log probabilities of `targets` under softmax(head(hidden) / temperature).

    hidden: (B, T, E); targets: (B, T), IGNORED gives 0. Returns (B, T) fp32. The head is computed
    where there is a target only; one that is not a plain linear layer is called as it is.
    """
    known = (targets.flatten() != IGNORED).nonzero()[:, 0]
    states, wanted = hidden.flatten(0, 1)[known], targets.flatten()[known]
    if type(head) is Linear:
        picked = ChunkedLogprobs.apply(states, head.weight, wanted, temperature)
    else:
        logprobs = (head(states).float() / temperature).log_softmax(-1)
        picked = logprobs.gather(-1, wanted[:, None])[:, 0]
    flat = picked.new_zeros(targets.numel())
    return flat.index_copy(0, known, picked).view(targets.shape)
