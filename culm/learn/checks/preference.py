"""Exercises of lesson 9b: preferences without a reward model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.learn.exercise import Exercise, Mistake, normal
from culm.objective.preference import Preference, log_odds, preference_loss


def sequence_logprob(logprobs: Tensor, learned: Tensor, mean: bool) -> Tensor:
    """(N, T), (N, T) -> (N,), as `PreferenceObjective` scores completions."""
    total = (logprobs * learned).sum(-1)
    return total / learned.sum(-1).clamp_min(1) if mean else total


def dpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    return preference_loss(chosen, rejected, Preference(beta=beta))


def dpo_answer(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    return F.softplus(-beta * (chosen - rejected))


def ipo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    return preference_loss(chosen, rejected, Preference(loss="ipo", beta=beta))


def ipo_answer(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def simpo(chosen: Tensor, rejected: Tensor, beta: float, gamma: float) -> Tensor:
    return preference_loss(chosen, rejected, Preference(loss="simpo", beta=beta, gamma=gamma))


def simpo_answer(chosen: Tensor, rejected: Tensor, beta: float, gamma: float) -> Tensor:
    return F.softplus(gamma - beta * (chosen - rejected))


def odds(logprob: Tensor) -> Tensor:
    return log_odds(logprob)


def odds_answer(logprob: Tensor) -> Tensor:
    return logprob - torch.log1p(-logprob.exp())


def optimal(start: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """The policy that maximises E[r] - beta KL(pi || start) (2305.18290, equation 4)."""
    return (start.log() + rewards / beta).softmax(-1)


def implied(policy: Tensor, start: Tensor, beta: float) -> Tensor:
    """Rewards up to a constant, with the mean 0."""
    found = beta * (policy.log() - start.log())
    return found - found.mean(-1, keepdim=True)


def _pair(g: torch.Generator) -> tuple[Tensor, Tensor]:
    return normal(g, 5), normal(g, 5)


def _chances(g: torch.Generator) -> Tensor:
    return normal(g, 4).softmax(-1)


MASK = torch.tensor([[True, True, False], [True, True, True]])
EXERCISES = (
    Exercise(
        "preference.optimal",
        "Weigh the start by exp(reward / beta), and let the result sum to 1.",
        optimal,
        lambda g: [(_chances(g), normal(g, 4), 0.5), (_chances(g), normal(g, 4), 5.0)],
        lambda start, rewards, beta: (
            start * (rewards / beta).exp() / (start * (rewards / beta).exp()).sum()
        ),
        (
            Mistake("the start has a weight too.",
                    lambda start, rewards, beta: (rewards / beta).softmax(-1)),
            Mistake("a small beta moves the policy further.",
                    lambda start, rewards, beta: (start.log() + rewards * beta).softmax(-1)),
        ),
    ),
    Exercise(
        "preference.implied",
        "Turn the formula around: the rewards, up to a constant, for which a policy is optimal; "
        "subtract their mean.",
        implied,
        lambda g: [(_chances(g), _chances(g), 0.5)],
        None,
        (
            Mistake("compare with the start.",
                    lambda policy, start, beta: beta * (policy.log() - policy.log().mean())),
            Mistake("multiply by beta.",
                    lambda policy, start, beta: implied(policy, start, 1.0)),
        ),
    ),
    Exercise(
        "preference.sequence_logprob",
        "Add up the log-probabilities of the learned tokens of each answer, or average them.",
        sequence_logprob,
        lambda g: [(normal(g, 2, 3), MASK, False), (normal(g, 2, 3), MASK, True)],
        None,
        (
            Mistake("the prompt and padding do not count.",
                    lambda logprobs, learned, mean: logprobs.mean(-1) if mean
                    else logprobs.sum(-1)),
            Mistake("an average divides by the learned tokens.",
                    lambda logprobs, learned, mean: (logprobs * learned).sum(-1)),
        ),
    ),
    Exercise(
        "preference.dpo",
        "Give -log sigmoid(beta * (chosen - rejected)) of log-ratios to the start.",
        dpo,
        lambda g: [(*_pair(g), 0.1), (*_pair(g), 0.5),
                   (torch.tensor([-2000.0]), torch.tensor([2000.0]), 0.1)],
        dpo_answer,
        (
            Mistake("use logsigmoid or softplus: the log of a rounded 0 is -inf.",
                    lambda chosen, rejected, beta: -(beta * (chosen - rejected)).sigmoid().log()),
            Mistake("beta is within the sigmoid.",
                    lambda chosen, rejected, beta: beta * F.softplus(rejected - chosen)),
        ),
    ),
    Exercise(
        "preference.ipo",
        "Give the squared distance of chosen - rejected from 1 / (2 beta).",
        ipo,
        lambda g: [(*_pair(g), 0.1), (*_pair(g), 2.0)],
        ipo_answer,
        (
            Mistake("the aim is 1 / (2 beta).",
                    lambda chosen, rejected, beta: (chosen - rejected - 1 / beta) ** 2),
        ),
    ),
    Exercise(
        "preference.simpo",
        "Give -log sigmoid(beta * (chosen - rejected) - gamma) of mean log-probabilities.",
        simpo,
        lambda g: [(*_pair(g), 2.0, 1.0), (*_pair(g), 1.0, 0.0)],
        simpo_answer,
        (
            Mistake("gamma is what the difference must exceed.",
                    lambda chosen, rejected, beta, gamma: F.softplus(
                        -gamma - beta * (chosen - rejected))),
        ),
    ),
    Exercise(
        "preference.odds",
        "Give log p - log(1 - p) from log p.",
        odds,
        lambda g: [(-normal(g, 5).abs() - 0.01,), (torch.tensor([-30.0, -1.0]),)],
        odds_answer,
        (
            Mistake("the input is log p.", lambda logprob: (logprob / (1 - logprob)).abs().log()),
            Mistake("subtract log(1 - p).", lambda logprob: logprob),
        ),
    ),
)  # fmt: skip
