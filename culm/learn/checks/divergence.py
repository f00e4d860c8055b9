"""Exercises of lesson 8: how far a policy is from its start, and what that costs."""

from __future__ import annotations

from torch import Tensor

from culm.learn.exercise import Exercise, Mistake, normal
from culm.objective import policy
from culm.objective.ppo import AdaptiveKL


def k1(new: Tensor, reference: Tensor) -> Tensor:
    return policy.divergence(new, reference, "k1")


def k3(new: Tensor, reference: Tensor) -> Tensor:
    return policy.divergence(new, reference, "k3")


def k3_answer(new: Tensor, reference: Tensor) -> Tensor:
    return (reference - new).exp() - 1 - (reference - new)


def next_cost(cost: float, kl: float, target: float, completions: int, horizon: int) -> float:
    adaptive = AdaptiveKL(cost, target, horizon)
    adaptive.update(kl, completions)
    return float(adaptive.cost)


def next_cost_answer(
    cost: float, kl: float, target: float, completions: int, horizon: int
) -> float:
    error = max(-0.2, min(0.2, kl / target - 1))
    return cost * (1 + error * min(1.0, completions / horizon))


def _cost_unlimited(cost: float, kl: float, target: float, completions: int, horizon: int) -> float:
    return cost * (1 + (kl / target - 1) * completions / horizon)


def _cost_wrong_way(cost: float, kl: float, target: float, completions: int, horizon: int) -> float:
    error = max(-0.2, min(0.2, kl / target - 1))
    return cost * (1 - error * min(1.0, completions / horizon))


EXERCISES = (
    Exercise(
        "divergence.k1",
        "Give log pi - log reference of each sampled token.",
        k1,
        lambda g: [(-normal(g, 3, 4).abs(), -normal(g, 3, 4).abs())],
        lambda new, reference: new - reference,
        (
            Mistake("the policy that sampled comes first.",
                    lambda new, reference: reference - new),
        ),
    ),
    Exercise(
        "divergence.k3",
        "Give ratio - 1 - log ratio with the ratio reference / pi: never negative.",
        k3,
        lambda g: [(-normal(g, 3, 4).abs(), -normal(g, 3, 4).abs())],
        k3_answer,
        (
            Mistake("the ratio is that of the reference to the policy.",
                    lambda new, reference: k3_answer(reference, new)),
            Mistake("this one is k2.", lambda new, reference: 0.5 * (new - reference) ** 2),
        ),
    ),
    Exercise(
        "divergence.next_cost",
        "Multiply the cost by 1 + error * completions / horizon, where the error is kl / target - "
        "1, between -0.2 and 0.2, and the fraction is 1 at most.",
        next_cost,
        lambda g: [(0.1, 5.0, 1.0, 100, 1000), (0.1, 1.1, 1.0, 100, 1000),
                   (0.1, 0.0, 1.0, 5000, 1000)],
        next_cost_answer,
        (
            Mistake("limit the error and the fraction.", _cost_unlimited),
            Mistake("further away costs more.", _cost_wrong_way),
        ),
    ),
)  # fmt: skip
