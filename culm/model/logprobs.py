"""Log-probabilities of given tokens, a chunk at a time: logits are the largest tensor of a step.

            forward                                  backward
hidden --- matmul ---> logits --- reduce ---> logprobs     differentiate ---> 2 matmuls
                         |_____ stored if they are small, else computed again ____|
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from culm.batch import IGNORED
from culm.model.linear import Linear

CHUNK = 1024  # tokens per chunk
ROUND = 256  # tokens are padded to a multiple, so that each step reuses the memory of the last
STORED_BYTES = 128 << 20  # maximum logits stored for the backward, which else needs a third matmul


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """softcap * tanh(logits / softcap): bounded, and unchanged near zero (arXiv 2408.00118)."""
    return logits if softcap is None else (logits / softcap).tanh() * softcap


def reduce(logits: Tensor, temperature: float) -> Tensor:
    """log of the sum of exp(logits / temperature): (N, V) -> (N,) fp32."""
    logits = logits.float()
    return (logits if temperature == 1.0 else logits / temperature).logsumexp(-1)


def differentiate(logits: Tensor, logsum: Tensor, factor: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) * factor: (N, V) in the dtype of the logits; factor: (N,)."""
    scores = logits if temperature == 1.0 else logits.float() / temperature
    return (scores - logsum[:, None]).exp_().mul_(factor[:, None]).to(logits.dtype)


@dataclass(frozen=True)
class Kernels:
    """The two passes over logits, plain or compiled (`culm.parallel.parallelize`)."""

    reduce: Callable[[Tensor, float], Tensor] = reduce
    differentiate: Callable[[Tensor, Tensor, Tensor, float], Tensor] = differentiate


class ChunkedLogprobs(torch.autograd.Function):
    """log softmax(hidden W^T / temperature)[target], computed chunk by chunk."""

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        kernels: Kernels,
        softcap: float | None,
    ):
        # hidden: (N, E), weight: (V, E), targets: (N,) -> (N,) fp32
        w = weight.to(hidden.dtype)
        keep = len(hidden) * w.shape[0] * w.itemsize <= STORED_BYTES and any(ctx.needs_input_grad)
        stored, picked, logsums = [], [], []
        for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            logits = capped(h @ w.t(), softcap)
            picked.append(logits.gather(-1, t[:, None])[:, 0])
            logsums.append(kernels.reduce(logits, temperature))
            stored += [logits] if keep else []
        logprobs = torch.cat(picked).float() / temperature - torch.cat(logsums)
        ctx.save_for_backward(hidden, weight, targets, logprobs, *logsums, *stored)
        ctx.temperature, ctx.kernels, ctx.softcap = temperature, kernels, softcap
        return logprobs

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor):
        hidden, weight, targets, logprobs, *rest = ctx.saved_tensors  # type: ignore[attr-defined]
        temperature, kernels = ctx.temperature, ctx.kernels  # type: ignore[attr-defined]
        softcap = ctx.softcap  # type: ignore[attr-defined]
        w, grad = weight.to(hidden.dtype), grads[0] / temperature
        # A frozen head, as under an adapter, takes neither the matmul nor the memory.
        needed = ctx.needs_input_grad  # type: ignore[attr-defined]
        grad_hidden = torch.empty_like(hidden) if needed[0] else None
        grad_weight = torch.zeros_like(weight) if needed[1] else None
        # grad * (1 - p), which is exact where p is near 1.
        at_target = (-grad * logprobs.expm1()).to(w.dtype)
        parts = [p.split(CHUNK) for p in (hidden, targets, grad, at_target)]
        logsums, stored = rest[: len(parts[0])], rest[len(parts[0]) :]
        for index, (h, t, g, target) in enumerate(zip(*parts, strict=True)):
            logits = stored[index] if stored else capped(h @ w.t(), softcap)
            d = kernels.differentiate(logits, logsums[index], -g, temperature)
            d.scatter_(-1, t[:, None], target[:, None])
            if softcap is not None:  # the derivative of tanh
                d.mul_(1 - (logits / softcap).square())
            if grad_hidden is not None:
                torch.mm(d, w, out=grad_hidden[index * CHUNK : index * CHUNK + len(h)])
            if grad_weight is not None:
                grad_weight += d.t() @ h  # in the precision of the weights, however many chunks
        return grad_hidden, grad_weight, None, None, None, None


def logprobs_of(
    hidden: Tensor,
    head: torch.nn.Module,
    targets: Tensor,
    temperature: float = 1.0,
    kernels: Kernels = Kernels(),
    softcap: float | None = None,
    vocabulary: int | None = None,
) -> Tensor:
    """Natural-log probabilities of `targets` under softmax(capped(head(hidden)) / temperature).

    hidden: (B, T, E); targets: (B, T), IGNORED gives 0. Returns (B, T) fp32. The head is computed
    only where there is a target. A head that is not a plain linear layer is called as a module.
    vocabulary: ids from there on have no probability, as in `culm.engine`.
    """
    known = (targets.flatten() != IGNORED).nonzero()[:, 0]
    rows = F.pad(known, (0, -len(known) % ROUND))
    states, wanted = hidden.flatten(0, 1)[rows], targets.flatten()[rows].clamp_min(0)
    if type(head) is Linear and head.bias is None:
        weight = head.weight if vocabulary is None else head.weight[:vocabulary]
        picked = ChunkedLogprobs.apply(states, weight, wanted, temperature, kernels, softcap)
    else:
        logits = capped(head(states).float()[..., :vocabulary], softcap)
        logprobs = (logits / temperature).log_softmax(-1)
        picked = logprobs.gather(-1, wanted[:, None])[:, 0]
    flat = picked.new_zeros(targets.numel())
    return flat.index_copy(0, known, picked[: len(known)]).view(targets.shape)
