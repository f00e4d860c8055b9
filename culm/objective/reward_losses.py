"""Losses of reward models: pure functions of the rewards of one head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, smoothing: float = 0.0
) -> Tensor:
    """Loss of each pair from its two rewards and the margin between them; (N,) each.

    smoothing: the fraction of pairs that are assumed to be swapped.
    """
    away = chosen - rejected - margin
    losses = -F.logsigmoid(away)
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * F.logsigmoid(-away)
    return losses


def margin_ranking(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 1.0) -> Tensor:
    """What each pair lacks of the margin; (N,) each."""
    return (margin - (chosen - rejected)).clamp_min(0)


def plackett_luce(rewards: Tensor, scores: Tensor, rankings: Tensor) -> Tensor:
    """(N,) losses, whose sum over a ranking is -log of the probability of its order.

    The answers of a ranking are chosen one after the other, each with the softmax of the rewards of
    those that are left (arXiv 2305.18290, appendix A.3). Equal scores have no order: each of them
    is chosen while all of them are left, as in Breslow's method for survival times.

    rewards, scores: (N,); rankings: (N,), equal for the answers of one ranking.
    """
    left = _together(rankings) & (scores[None, :] <= scores[:, None])
    others = rewards[None, :].expand(left.shape)
    return others.masked_fill(~left, -torch.inf).logsumexp(1) - rewards


def better_than(scores: Tensor, rankings: Tensor) -> Tensor:
    """(N, N) bool, where answer i has a higher score than answer j of the same ranking."""
    return _together(rankings) & (scores[:, None] > scores[None, :])


def ordered_share(rewards: Tensor, scores: Tensor, rankings: Tensor) -> Tensor:
    """() the share of pairs in the right order, of each ranking, added up."""
    better = better_than(scores, rankings)
    right = (better & (rewards[:, None] > rewards[None, :])).sum(1)
    compared = _together(rankings).float() @ better.sum(1).float()
    return (right / compared.clamp_min(1)).sum()


def _together(rankings: Tensor) -> Tensor:
    return rankings[:, None] == rankings[None, :]
