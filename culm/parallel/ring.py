"""Ring attention (arXiv 2310.01889): keys and values travel from rank to rank, and each rank adds
what its queries read from them. No rank ever holds those of whole rows.

The backward lets them travel once more, with the gradients of those that they belong to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from culm.model.attend import LARGEST_BLOCK, away_of, scores_of, visible
from culm.model.context import Context
from culm.model.score_rule import Backend, ScoreRule
from culm.parallel.axis import Axis
from culm.parallel.collectives import exchanged_rows


class Ring:
    """Attention of the two pieces of each row that a rank has, an early and a late one."""

    def __init__(self, axis: Axis, whole: Context) -> None:
        self.axis, self.whole = axis, whole

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule, backend: Backend) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return _Ring.apply(q, k, v, rule.sink_logits, self, rule).transpose(1, 2)

    def shifted(self, x: Tensor) -> Tensor:
        """What the rank before this one holds."""
        ranks, rank = self.axis.size, self.axis.rank
        sent, received = [0] * ranks, [0] * ranks
        sent[(rank + 1) % ranks] = received[(rank - 1) % ranks] = len(x)
        return exchanged_rows(x, sent, received, self.axis)

    def parts(self, step: int, length: int) -> Iterator[Part]:
        """Queries of this rank, and keys of the rank `step` before it that they see some of.

        length: tokens of a rank.
        """
        ranks, rank, size = self.axis.size, self.axis.rank, length // 2
        source = (rank - step) % ranks
        for q_place, q_piece in enumerate((rank, 2 * ranks - 1 - rank)):
            for k_place, k_piece in enumerate((source, 2 * ranks - 1 - source)):
                for first in range(0, size, LARGEST_BLOCK) if k_piece <= q_piece else ():
                    last = min(first + LARGEST_BLOCK, size)
                    yield Part(
                        slice(q_place * size + first, q_place * size + last),
                        slice(k_place * size, (k_place + 1) * size),
                        (q_piece * size + first, q_piece * size + last),
                        (k_piece * size, (k_piece + 1) * size),
                    )


@dataclass(frozen=True)
class Part:
    """queries, keys: where they are in the tensors of their ranks. q_at, k_at: and in the row."""

    queries: slice
    keys: slice
    q_at: tuple[int, int]
    k_at: tuple[int, int]

    def scores(self, q: Tensor, k: Tensor, ring: Ring, rule: ScoreRule) -> Tensor:
        """(B, H, T, S) fp32, from queries and keys of the part."""
        mask = visible(*self.q_at, *self.k_at, ring.whole, rule)
        away = None if rule.slopes is None else away_of(*self.q_at, *self.k_at, q.device)
        return scores_of(q, k, mask, replace(rule, sink_logits=None), away).flatten(1, 2)


class _Ring(torch.autograd.Function):
    """q: (B, H, T, D); k: (B, K, T, D), v: (B, K, T, Dv), of this rank -> (B, H, T, Dv)."""

    @staticmethod
    def forward(
        ctx, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, ring: Ring, rule: ScoreRule
    ) -> Tensor:
        out = q.new_zeros((*q.shape[:3], v.shape[3]), dtype=torch.float32)
        # log of the sum of exp(scores) so far
        total = torch.full(q.shape[:3], float("-inf"), device=q.device)
        if sinks is not None:
            total = sinks.float()[None, :, None].expand_as(total).clone()
        travelling = torch.cat((k, v), -1)
        for step in range(ring.axis.size):
            travelling = travelling if step == 0 else ring.shifted(travelling)
            for part in ring.parts(step, q.shape[2]):
                keys, values = travelling[:, :, part.keys].split([k.shape[3], v.shape[3]], -1)
                scores = part.scores(q[:, :, part.queries], keys, ring, rule)
                before = total[:, :, part.queries]
                after = torch.logaddexp(before, scores.logsumexp(-1))
                weights = _exp(scores, after).to(v.dtype)
                old = out[:, :, part.queries] * _exp(before[..., None], after)
                out[:, :, part.queries] = old + _grouped_matmul(weights, values)
                total[:, :, part.queries] = after
        out = out.to(v.dtype)
        ctx.save_for_backward(q, k, v, sinks, out, total)
        ctx.ring, ctx.rule = ring, rule
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor):
        q, k, v, sinks, out, total = ctx.saved_tensors
        ring, rule, grad = ctx.ring, ctx.rule, grads[0]
        delta = (grad.float() * out.float()).sum(-1)  # what each query loses for its weights
        grad_q = torch.zeros_like(q, dtype=torch.float32)
        widths = [k.shape[3], v.shape[3]]
        travelling = torch.cat((k, v), -1)
        found = torch.zeros_like(travelling, dtype=torch.float32)
        for step in range(ring.axis.size):
            if step:
                travelling, found = ring.shifted(travelling), ring.shifted(found)
            for part in ring.parts(step, q.shape[2]):
                keys, values = travelling[:, :, part.keys].split(widths, -1)
                own = slice(None), slice(None), part.queries
                with torch.enable_grad():
                    queries, keys = (x.detach().requires_grad_() for x in (q[own], keys))
                    scores = part.scores(queries, keys, ring, rule)
                weights = _exp(scores.detach(), total[own])
                outer = _grouped_matmul(grad[own].float(), values.float().transpose(-1, -2))
                changes = weights * (outer - delta[own][..., None])
                scores.backward(changes)
                grad_q[own] += queries.grad
                heads = weights.unflatten(1, (values.shape[1], -1)).flatten(2, 3)
                theirs = grad[own].float().unflatten(1, (values.shape[1], -1)).flatten(2, 3)
                grad_values = heads.transpose(-1, -2) @ theirs
                found[:, :, part.keys] += torch.cat((keys.grad.float(), grad_values), -1)
        found = ring.shifted(found)  # home
        grad_k, grad_v = (x.to(k.dtype) for x in found.split(widths, -1))
        grad_sinks = None
        if sinks is not None:
            shares = (sinks.float()[None, :, None] - total).exp()
            grad_sinks = -(shares * delta).sum((0, 2)).to(sinks.dtype)
        return grad_q.to(q.dtype), grad_k, grad_v, grad_sinks, None, None


def _exp(scores: Tensor, total: Tensor) -> Tensor:
    """exp(scores - total), and 0 where nothing is seen yet; (..., S) and (...)."""
    found = (scores - total[..., None]).exp()
    return found.masked_fill((total == float("-inf"))[..., None], 0.0)


def _grouped_matmul(x: Tensor, y: Tensor) -> Tensor:
    """x: (B, H, T, N) times y: (B, K, N, M), of the group of each head -> (B, H, T, M)."""
    groups = x.unflatten(1, (y.shape[1], -1)).flatten(2, 3)
    return (groups @ y).unflatten(2, (-1, x.shape[2])).flatten(1, 2)
