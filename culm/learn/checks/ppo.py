"""Exercises of lesson 8: advantages, the clipped surrogate and the value loss."""

from __future__ import annotations

import torch
from torch import Tensor

from culm.learn.exercise import Exercise, Mistake, normal
from culm.objective import policy


def returns(rewards: Tensor, gamma: float) -> Tensor:
    zeros, every = torch.zeros(1, len(rewards)), torch.ones(1, len(rewards), dtype=torch.bool)
    return policy.generalised_advantages(rewards[None], zeros, every, gamma, 1.0)[0]


def returns_answer(rewards: Tensor, gamma: float) -> Tensor:
    found, ahead = torch.zeros_like(rewards), torch.zeros(())
    for t in range(len(rewards) - 1, -1, -1):
        found[t] = ahead = rewards[t] + gamma * ahead
    return found


def _returns_from_start(rewards: Tensor, gamma: float) -> Tensor:
    return (rewards * gamma ** torch.arange(len(rewards))).flip(0).cumsum(0).flip(0)


def token_rewards(reward: float, away: Tensor, cost: float) -> Tensor:
    every = torch.ones(1, len(away), dtype=torch.bool)
    return policy.token_rewards(torch.tensor([reward]), away[None], every, cost)[0]


def token_rewards_answer(reward: float, away: Tensor, cost: float) -> Tensor:
    found = -cost * away
    found[-1] += reward
    return found


def _reward_everywhere(reward: float, away: Tensor, cost: float) -> Tensor:
    return reward - cost * away


def _reward_of_total(reward: float, away: Tensor, cost: float) -> Tensor:
    found = torch.zeros_like(away)
    found[-1] = reward - cost * away.sum()
    return found


def gae(rewards: Tensor, values: Tensor, gamma: float, decay: float) -> Tensor:
    every = torch.ones(1, len(rewards), dtype=torch.bool)
    return policy.generalised_advantages(rewards[None], values[None], every, gamma, decay)[0]


def gae_answer(rewards: Tensor, values: Tensor, gamma: float, decay: float) -> Tensor:
    following = torch.cat((values[1:], torch.zeros(1)))
    deltas = rewards + gamma * following - values
    return returns_answer(deltas, gamma * decay)


def _gae_without_discount(rewards: Tensor, values: Tensor, gamma: float, decay: float) -> Tensor:
    following = torch.cat((values[1:], torch.zeros(1)))
    return returns_answer(rewards + gamma * following - values, decay)


def _gae_ends_in_value(rewards: Tensor, values: Tensor, gamma: float, decay: float) -> Tensor:
    following = torch.cat((values[1:], values[-1:]))
    return returns_answer(rewards + gamma * following - values, gamma * decay)


def clipped(new: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    every = torch.ones_like(new, dtype=torch.bool)
    ratio = policy.importance_ratio(new, old, every, "token")
    return policy.clipped_surrogate(ratio, advantages, clip, clip)[0]


def clipped_answer(new: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    ratio = (new - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def _clipped_always(new: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    return -(new - old).exp().clamp(1 - clip, 1 + clip) * advantages


def _unclipped(new: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    return -(new - old).exp() * advantages


def value_loss(values: Tensor, old: Tensor, returned: Tensor, clip: float) -> Tensor:
    return policy.value_loss(values, old, returned, clip)


def value_loss_answer(values: Tensor, old: Tensor, returned: Tensor, clip: float) -> Tensor:
    near = torch.minimum(torch.maximum(values, old - clip), old + clip)
    return 0.5 * torch.maximum((values - returned) ** 2, (near - returned) ** 2)


def whitened(advantages: Tensor) -> Tensor:
    return (advantages - advantages.mean()) / (advantages.var() + 1e-8).sqrt()


def _four(g: torch.Generator, shape: tuple[int, ...] = (2, 4)) -> tuple[Tensor, ...]:
    return normal(g, *shape), normal(g, *shape), normal(g, *shape)


EXERCISES = (
    Exercise(
        "ppo.returns",
        "Give at each token its reward and all later ones, discounted by gamma for each step.",
        returns,
        lambda g: [(normal(g, 5), 0.9), (torch.tensor([0.0, 0.0, 1.0]), 1.0)],
        returns_answer,
        (
            Mistake("a reward is discounted from the token that asks.",
                    _returns_from_start),
            Mistake("what was earned before does not count.",
                    lambda rewards, gamma: rewards.cumsum(0)),
        ),
    ),
    Exercise(
        "ppo.token_rewards",
        "Charge each token the cost of its nats away from the start; the last one gets the reward.",
        token_rewards,
        lambda g: [(1.0, normal(g, 4), 0.1), (-0.5, normal(g, 1), 0.0)],
        token_rewards_answer,
        (
            Mistake("an answer is rewarded once, at its end.", _reward_everywhere),
            Mistake("each token pays for itself.", _reward_of_total),
        ),
    ),
    Exercise(
        "ppo.gae",
        "Give reward + gamma * next value - value at each token, and add what follows, discounted "
        "by gamma * decay; the value after the last token is 0.",
        gae,
        lambda g: [(normal(g, 5), normal(g, 5), 0.9, 0.8), (normal(g, 3), normal(g, 3), 1.0, 0.0)],
        gae_answer,
        (
            Mistake("discount by gamma * decay.", _gae_without_discount),
            Mistake("after the end nothing is earned.", _gae_ends_in_value),
        ),
    ),
    Exercise(
        "ppo.whitened",
        "Give advantages the mean 0 and the standard deviation 1 (n - 1; 1e-8 added to the "
        "variance).",
        whitened,
        lambda g: [(normal(g, 6) * 5 + 2,), (torch.tensor([1.0, 3.0]),)],
        None,
        (
            Mistake("divide by the deviation.", lambda advantages: advantages - advantages.mean()),
            Mistake(
                "the sample's variance divides by n - 1.",
                lambda advantages: (advantages - advantages.mean())
                / advantages.std(correction=0),
            ),
        ),
    ),
    Exercise(
        "ppo.clipped",
        "Give the loss of each token: minus the smaller of ratio * advantage and clipped ratio * "
        "advantage.",
        clipped,
        lambda g: [(*_four(g), 0.2), (*_four(g), 0.1)],
        clipped_answer,
        (
            Mistake(
                "a step that went the wrong way must keep its gradient: take the smaller one.",
                _clipped_always,
            ),
            Mistake("clip the ratio.", _unclipped),
        ),
    ),
    Exercise(
        "ppo.value_loss",
        "Give half the larger of two squared errors: of the value, and of the value within `clip` "
        "of the old one.",
        value_loss,
        lambda g: [(*_four(g), 0.2), (*_four(g, (3,)), 5.0)],
        value_loss_answer,
        (
            Mistake("take the larger of both errors.",
                    lambda values, old, returned, clip: 0.5 * (values - returned) ** 2),
            Mistake("half of it.",
                    lambda values, old, returned, clip: 2 * value_loss_answer(
                        values, old, returned, clip)),
        ),
    ),
)  # fmt: skip
