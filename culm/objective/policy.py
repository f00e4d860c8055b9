"""What policy gradients share: the clipped surrogate, advantages, and measures of divergence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from culm.batch import Batch
from culm.model.context import Context
from culm.model.transformer import Transformer

Scale = Literal["group", "batch", "none"]
Baseline = Literal["mean", "others", "none"]
Ratio = Literal["token", "sequence", "product"]
Estimate = Literal["k1", "k2", "k3"]
Correction = Literal["none", "token", "sequence", "mask"]

MOST = 20.0  # nats: a larger log-ratio would overflow, and is clipped anyway


def policy_logprobs(model: Transformer, batch: Batch) -> Tensor:
    """(B, T) fp32 log-probabilities of the targets; nothing is recorded of experts."""
    return sampled_logprobs(model, batch, inference_context(batch))


def sampled_logprobs(model: Transformer, batch: Batch, context: Context) -> Tensor:
    """(B, T) fp32 log-probabilities of the targets in the distribution they were sampled from: at
    the temperature, and among the ids, of the sampler.
    """
    return model.logprobs(batch.tokens, batch.targets, context, batch.temperature, batch.vocabulary)


def inference_context(batch: Batch) -> Context:
    """For a model that only reads the batch."""
    return Context(batch.positions, batch.documents, padding=batch.padding)


def group_advantages(
    rewards: Tensor,
    group: int,
    scale: Scale,
    baseline: Baseline = "mean",
) -> Tensor:
    """(N * G,) rewards -> advantages within groups of G; nan stays out, with an advantage of 0.

    baseline: what is subtracted: the mean of the group, that of the other completions (leave one
    out), or nothing. scale: with "group", divide by its standard deviation (Bessel-corrected, eps
    1e-4, as in TRL).
    """
    # In float64, where the mean of equal rewards is exactly these.
    grouped = rewards.double().view(-1, group)
    known = ~grouped.isnan()
    count = known.sum(1, keepdim=True)
    mean = 0.0 if baseline == "none" else grouped.nanmean(1, keepdim=True)
    centred = (grouped - mean).where(known, 0.0)
    if scale == "group":
        away = (grouped - grouped.nanmean(1, keepdim=True)).where(known, 0.0)
        deviation = (away.square().sum(1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
        centred = centred / (deviation + 1e-4)
    if baseline == "others":
        centred = centred * count / (count - 1).clamp_min(1)
    return centred.flatten().to(rewards.dtype)


def importance_ratio(new: Tensor, old: Tensor, learned: Tensor, kind: Ratio) -> Tensor:
    """(B, T) pi_new / pi_old, of each token, or the same for all tokens of a completion.

    token: of each. sequence: their geometric mean (GSPO, arXiv 2507.18071). product: that of the
    whole completion.
    """
    log_ratio = new - old
    if kind == "token":
        return log_ratio.clamp(-MOST, MOST).exp()
    total = (log_ratio * learned).sum(1, keepdim=True)
    if kind == "sequence":
        total = total / learned.sum(1, keepdim=True).clamp_min(1)
    return total.clamp(-MOST, MOST).exp().expand_as(new)


def clipped_surrogate(
    ratio: Tensor, advantage: Tensor, low: float, high: float, dual: float | None = None
) -> tuple[Tensor, Tensor]:
    """The loss of each token (arXiv 1707.06347), and where it was clipped.

    ratio: (B, T); advantage: (B,) or (B, T). dual: bound of the ratio where the advantage is
    negative (dual clip, arXiv 1912.09729; two-sided clip, arXiv 2505.07291).
    """
    advantage = advantage[:, None] if advantage.ndim == 1 else advantage
    free = ratio if dual is None else ratio.clamp_max(dual)
    losses, bounded = -advantage * free, -advantage * ratio.clamp(1 - low, 1 + high)
    outside = (bounded > losses) | ((free < ratio) & (advantage < 0))
    return torch.maximum(losses, bounded), outside


def clipped_weight(
    new: Tensor, ratio: Tensor, advantage: Tensor, high: float
) -> tuple[Tensor, Tensor]:
    """The loss of each token by CISPO (arXiv 2506.13585), and where it was clipped: its ratio is a
    weight without gradient, at most 1 + high, so that every token keeps its gradient.
    """
    advantage = advantage[:, None] if advantage.ndim == 1 else advantage
    weight = ratio.detach().clamp_max(1 + high)
    return -advantage * weight * new, ratio > 1 + high


def divergence(new: Tensor, reference: Tensor, estimate: Estimate) -> Tensor:
    """(B, T) estimates of KL(pi || reference) at tokens that the policy sampled, in nats
    (joschu.net/blog/kl-approx.html).

    k1: log pi/ref, unbiased, to use in a reward. k2: half its square; its gradient is that of the
    KL divergence. k3: unbiased and never negative; its gradient is that of KL(reference || pi).
    """
    log_ratio = (new - reference).clamp(-MOST, MOST)
    match estimate:
        case "k1":
            return log_ratio
        case "k2":
            return 0.5 * log_ratio.square()
        case "k3":
            return (-log_ratio).exp() - 1 + log_ratio


def sampler_weights(
    old: Tensor, sampler: Tensor, learned: Tensor, kind: Correction, cap: float
) -> Tensor:
    """(B, T) weights, without gradient, for tokens that another policy than `old` sampled: an
    engine computes in other precision or order. sampler: its log-probabilities.

    token, sequence: the ratio of the policies for each token or completion, at most `cap`
    (truncated importance sampling). mask: 1, and 0 for completions whose ratio is above `cap`.
    """
    if kind == "none":
        return torch.ones_like(old)
    log_ratio = (old - sampler) * learned
    if kind != "token":
        log_ratio = log_ratio.sum(1, keepdim=True).expand_as(old)
    weights = log_ratio.clamp(-MOST, MOST).exp().detach()
    return (weights <= cap).to(old.dtype) if kind == "mask" else weights.clamp_max(cap)


def generalised_advantages(
    rewards: Tensor, values: Tensor, learned: Tensor, gamma: float, decay: float
) -> Tensor:
    """Generalised advantage estimation (arXiv 1506.02438), over the learned tokens of each row.

    rewards, values: (B, T); learned: (B, T) bool. Tokens between them, such as those of a tool,
    are skipped. decay: lambda. Returns (B, T), 0 where nothing is learned.
    """
    advantages = torch.zeros_like(values)
    following = values.new_zeros(len(values))  # value and advantage of the next learned token
    ahead = values.new_zeros(len(values))
    for t in range(values.shape[1] - 1, -1, -1):
        here = learned[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        found = delta + gamma * decay * ahead
        advantages[:, t] = found.where(here, 0)
        ahead = found.where(here, ahead)
        following = values[:, t].where(here, following)
    return advantages


def last_learned(learned: Tensor) -> Tensor:
    """(B, T) bool, True at the last learned token of each row that has one."""
    ahead = learned.flip(1).cumsum(1).flip(1)
    return learned & (ahead == 1)


def token_rewards(rewards: Tensor, away: Tensor, learned: Tensor, cost: float) -> Tensor:
    """(B, T) what each token earns: the last one the reward of its completion, and each of them
    minus `cost` for a nat away from the reference.

    rewards: (B,), nan where nothing is learned. away: (B, T), log pi/ref.
    """
    return last_learned(learned) * rewards.nan_to_num(0.0)[:, None] - cost * away


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error of each value, or that of the value clipped near the old one."""
    bounded = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (bounded - returns).square())
