"""Log-probabilities of given tokens, a chunk at a time: logits are the largest tensor of a step.

            forward                                  backward
hidden --- matmul ---> logits --- reduce ---> logprobs     differentiate ---> 2 matmuls
                         |_____ stored if they are small, else computed again ____|
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from culm.batch import IGNORED
from culm.dtensor import local_shard
from culm.model.linear import Linear

CHUNK = 1024  # tokens per chunk
ROUND = 256  # tokens are padded to a multiple, so that each step reuses the memory of the last
STORED_BYTES = 128 << 20  # maximum logits stored for the backward, which else needs a third matmul


@contextmanager
def logits_stored() -> Iterator[None]:
    """However large they are: to count what a step needs, without what is computed again."""
    global STORED_BYTES
    usual = STORED_BYTES
    STORED_BYTES = sys.maxsize
    try:
        yield
    finally:
        STORED_BYTES = usual


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


class VocabularyShard(Protocol):
    """The rows of the output head that this rank holds: ids `start` and following ones."""

    @property
    def start(self) -> int: ...

    @property
    def ranks(self) -> int: ...

    def sum(self, values: Tensor) -> Tensor:
        """Added up over the ranks."""
        ...

    def logsumexp(self, values: Tensor) -> Tensor:
        """log of the sum of exp(values) over the ranks."""
        ...


class RowShare(Protocol):
    """The rows whose log-probabilities this rank computes, of those that several ranks hold."""

    @property
    def ranks(self) -> int: ...

    def own(self, rows: Tensor) -> Tensor:
        """(N, ...) -> (N / ranks, ...)."""
        ...

    def gathered(self, values: Tensor) -> Tensor:
        """(N / ranks,) of each rank -> (N,)."""
        ...


@dataclass(frozen=True)
class Kernels:
    """The two passes over logits, plain or compiled, and the ranks that share them
    (`culm.parallel.parallelize`). None: each rank has all of the vocabulary, or all rows.
    """

    reduce: Callable[[Tensor, float], Tensor] = reduce
    differentiate: Callable[[Tensor, Tensor, Tensor, float], Tensor] = differentiate
    vocabulary: VocabularyShard | None = None
    rows: RowShare | None = None


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
        shard = kernels.vocabulary
        targets, known = (targets, None) if shard is None else _own(targets, shard.start, len(w))
        for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            logits = capped(h @ w.t(), softcap)
            picked.append(logits.gather(-1, t[:, None])[:, 0])
            logsum = kernels.reduce(logits, temperature)
            logsums.append(logsum if shard is None else shard.logsumexp(logsum))
            stored += [logits] if keep else []
        found = torch.cat(picked).float()
        if shard is not None and known is not None:
            found = shard.sum(found * known)
        logprobs = found / temperature - torch.cat(logsums)
        ctx.known = known
        ctx.save_for_backward(hidden, weight, targets, logprobs, *logsums, *stored)
        ctx.temperature, ctx.kernels, ctx.softcap = temperature, kernels, softcap
        return logprobs

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor):
        hidden, weight, targets, logprobs, *rest = ctx.saved_tensors  # type: ignore[attr-defined]
        temperature, kernels = ctx.temperature, ctx.kernels  # type: ignore[attr-defined]
        softcap = ctx.softcap  # type: ignore[attr-defined]
        w, grad = weight.to(hidden.dtype), grads[0] / temperature
        if kernels.vocabulary is not None:  # the logits of each rank are in the result of all
            grad = grad * kernels.vocabulary.ranks
        # A frozen head, as under an adapter, takes neither the matmul nor the memory.
        needed = ctx.needs_input_grad  # type: ignore[attr-defined]
        grad_hidden = torch.empty_like(hidden) if needed[0] else None
        grad_weight = torch.zeros_like(weight) if needed[1] else None
        # grad * (1 - p), which is exact where p is near 1.
        known = ctx.known  # type: ignore[attr-defined]
        at_target = (-grad * logprobs.expm1()).to(w.dtype)
        parts = [p.split(CHUNK) for p in (hidden, targets, grad, at_target)]
        logsums, stored = rest[: len(parts[0])], rest[len(parts[0]) :]
        for index, (h, t, g, target) in enumerate(zip(*parts, strict=True)):
            logits = stored[index] if stored else capped(h @ w.t(), softcap)
            d = kernels.differentiate(logits, logsums[index], -g, temperature)
            # In bf16 on a CPU, scatter_ copies all of d to fp32 and back.
            at = torch.arange(len(t), device=t.device), t
            if known is not None:  # the targets of other ranks are none of these logits
                target = target.where(known[index * CHUNK : index * CHUNK + len(h)], d[at])
            d[at] = target
            if softcap is not None:  # the derivative of tanh
                d.mul_(1 - (logits / softcap).square())
            if grad_hidden is not None:
                torch.mm(d, w, out=grad_hidden[index * CHUNK : index * CHUNK + len(h)])
            if grad_weight is not None:
                grad_weight += d.t() @ h  # in the precision of the weights, however many chunks
        return grad_hidden, grad_weight, None, None, None, None


def _own(targets: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Targets counted from `start`, and which of them are among the `size` ids from there on."""
    own = targets - start
    known = (own >= 0) & (own < size)
    return own.where(known, 0), known


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
    share = kernels.rows
    rows = F.pad(known, (0, -len(known) % (ROUND * (1 if share is None else share.ranks))))
    rows = rows if share is None else share.own(rows)
    states, wanted = hidden.flatten(0, 1)[rows], targets.flatten()[rows].clamp_min(0)
    if type(head) is Linear and head.bias is None:
        weight = local_shard(head.weight)
        if vocabulary is not None:
            first = 0 if kernels.vocabulary is None else kernels.vocabulary.start
            weight = weight[: max(0, vocabulary - first)]
            if not len(weight):
                raise ValueError(
                    f"parallel.tensor: a rank has the ids from {first} on, and the tokenizer has "
                    f"{vocabulary}; use fewer tensor-parallel ranks"
                )
        picked = ChunkedLogprobs.apply(states, weight, wanted, temperature, kernels, softcap)
    else:
        logits = capped(head(states).float()[..., :vocabulary], softcap)
        logprobs = (logits / temperature).log_softmax(-1)
        picked = logprobs.gather(-1, wanted[:, None])[:, 0]
    picked = picked if share is None else share.gathered(picked)
    flat = picked.new_zeros(targets.numel())
    return flat.index_copy(0, known, picked[: len(known)]).view(targets.shape)
