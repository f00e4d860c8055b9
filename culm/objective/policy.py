"""What policy gradients share: the clipped surrogate, advantages, and measures of divergence."""

from __future__ import annotations

import torch
from torch import Tensor

from culm.batch import Batch
from culm.model.context import Context
from culm.model.transformer import Transformer

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


def group_advantages(rewards: Tensor, group: int, scale: str) -> Tensor:
    """(N * G,) rewards -> advantages within groups; std is Bessel-corrected, eps 1e-4 as in TRL."""
    grouped = rewards.view(-1, group)
    centred = grouped - grouped.mean(1, keepdim=True)
    if scale == "group":
        centred = centred / (grouped.std(1, keepdim=True) + 1e-4)
    return centred.flatten()


def clipped_surrogate(
    new: Tensor, old: Tensor, advantage: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """The loss of each token (arXiv 1707.06347), and where it was clipped.

    new, old: (B, T) log-probabilities; advantage: (B,) or (B, T).
    """
    advantage = advantage[:, None] if advantage.ndim == 1 else advantage
    ratio = (new - old).clamp(-MOST, MOST).exp()
    bounded = ratio.clamp(1 - low, 1 + high)
    losses = torch.maximum(-advantage * ratio, -advantage * bounded)
    return losses, -advantage * bounded > -advantage * ratio


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
