"""Exercises of lesson 7: how rewards are shaped, and how far a policy may follow them."""

from __future__ import annotations

import math

from culm.learn.exercise import Exercise, Mistake
from culm.rollout.reward.ensemble import Ensemble
from culm.rollout.reward.length import LengthPenalty


def too_long(tokens: int, longest: int, margin: int) -> float:
    return LengthPenalty(longest=longest, margin=margin).penalty(tokens)


def too_long_answer(tokens: int, longest: int, margin: int) -> float:
    return -min(1.0, max(0.0, (tokens - (longest - margin)) / margin))


def shaped(rewards: list[float], potentials: list[float], gamma: float) -> list[float]:
    """Ng et al. (1999): r_t + gamma * potential after the step - potential before it."""
    after = [*potentials[1:], 0.0]
    every = zip(rewards, potentials, after, strict=True)
    return [r + gamma * new - old for r, old, new in every]


def _shaped_kept_at_the_end(
    rewards: list[float], potentials: list[float], gamma: float
) -> list[float]:
    found = shaped(rewards, potentials, gamma)
    return [*found[:-1], rewards[-1] + gamma * potentials[-1] - potentials[-1]]


def cautious(scores: list[float], k: float) -> float:
    return Ensemble(paths=("a", "b"), combine="deviation", k=k).combined(scores)


def cautious_answer(scores: list[float], k: float) -> float:
    mean = sum(scores) / len(scores)
    return mean - k * math.sqrt(sum((one - mean) ** 2 for one in scores) / len(scores))


def _cautious_by_bessel(scores: list[float], k: float) -> float:
    mean = sum(scores) / len(scores)
    return mean - k * math.sqrt(sum((one - mean) ** 2 for one in scores) / (len(scores) - 1))


def best_of(n: int) -> float:
    """KL divergence of the best of n samples from one sample, an upper bound (2112.09332)."""
    return math.log(n) - (n - 1) / n


EXERCISES = (
    Exercise(
        "shaping.too_long",
        "Fall evenly from 0 to -1 over the last `margin` tokens before `longest`.",
        too_long,
        lambda g: [(5, 20, 8), (12, 20, 8), (16, 20, 8), (20, 20, 8), (50, 20, 8)],
        too_long_answer,
        (
            Mistake(
                "a step has no slope to learn from.",
                lambda tokens, longest, margin: -1.0 if tokens > longest else 0.0,
            ),
            Mistake(
                "never below -1.",
                lambda tokens, longest, margin: -max(0.0, (tokens - longest + margin) / margin),
            ),
        ),
    ),
    Exercise(
        "shaping.shaped",
        "Add to each reward gamma times the potential after the step, minus that before it; after "
        "the last step it is 0.",
        shaped,
        lambda g: [([0.0, 0.0, 1.0], [0.2, 0.5, 0.9], 1.0), ([1.0], [0.3], 0.9)],
        None,
        (
            Mistake("at the end the potential is 0.", _shaped_kept_at_the_end),
            Mistake(
                "a bonus of its own is collected for ever; take the difference.",
                lambda rewards, potentials, gamma: [
                    r + p for r, p in zip(rewards, potentials, strict=True)
                ],
            ),
        ),
    ),
    Exercise(
        "shaping.cautious",
        "Give the mean of the members' scores minus k standard deviations, of these members.",
        cautious,
        lambda g: [([1.0, 2.0, 6.0], 1.0), ([2.0, 2.0], 3.0), ([0.0, 1.0], 0.5)],
        cautious_answer,
        (
            Mistake("divide by the number of members.", _cautious_by_bessel),
            Mistake("where members differ, be careful.",
                    lambda scores, k: sum(scores) / len(scores)),
        ),
    ),
    Exercise(
        "shaping.best_of",
        "Give log n - (n - 1) / n: how far, in nats, the best of n samples is from one sample.",
        best_of,
        lambda g: [(1,), (2,), (16,), (1000,)],
        None,
        (Mistake("subtract (n - 1) / n.", lambda n: math.log(n)),),
    ),
)  # fmt: skip
