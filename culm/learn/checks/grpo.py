"""Exercises of lesson 9a: groups, advantages, rewards that can be verified, and variants."""

from __future__ import annotations

import torch
from torch import Tensor

from culm.learn.exercise import Exercise, Mistake, normal
from culm.objective import policy
from culm.rollout.groups import Group, filled
from culm.task.countdown import Countdown, evaluated
from culm.task.task import Question


def advantages(rewards: Tensor) -> Tensor:
    return policy.group_advantages(rewards.flatten(), rewards.shape[1], "group").view_as(rewards)


def advantages_answer(rewards: Tensor) -> Tensor:
    away = rewards - rewards.mean(1, keepdim=True)
    return away / (rewards.std(1, keepdim=True) + 1e-4)


def _advantages_of_batch(rewards: Tensor) -> Tensor:
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


def leave_one_out(rewards: Tensor) -> Tensor:
    found = policy.group_advantages(rewards.flatten(), rewards.shape[1], "none", "others")
    return found.view_as(rewards)


def leave_one_out_answer(rewards: Tensor) -> Tensor:
    others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


def mixed(rewards: list[float]) -> bool:
    return Group([], rewards, {}).mixed


def replaced(groups: list[list[float]], others: list[list[float]]) -> list[list[float]]:
    found = filled([Group([], one, {}) for one in groups], [Group([], one, {}) for one in others])
    return [list(one.rewards) for one in found]


def replaced_answer(groups: list[list[float]], others: list[list[float]]) -> list[list[float]]:
    left = list(others)
    return [left.pop(0) if len(set(one)) == 1 and left else one for one in groups]


def _replaced_first(groups: list[list[float]], others: list[list[float]]) -> list[list[float]]:
    return [*others, *groups][: len(groups)]


def _left_out(groups: list[list[float]], others: list[list[float]]) -> list[list[float]]:
    return [one for one in groups if len(set(one)) > 1]


def sequence_ratio(new: Tensor, old: Tensor, learned: Tensor) -> Tensor:
    return policy.importance_ratio(new, old, learned, "sequence")[:, 0]


def sequence_ratio_answer(new: Tensor, old: Tensor, learned: Tensor) -> Tensor:
    return (((new - old) * learned).sum(1) / learned.sum(1)).exp()


def averaged(losses: Tensor, learned: Tensor, by: str, longest: int) -> Tensor:
    """losses: (N, T) -> a tensor without axes, as `culm.objective.grpo` weighs and divides."""
    lengths = learned.sum(1)
    scale = {
        "tokens": torch.ones(len(lengths)),
        "sequences": 1.0 / lengths,
        "constant": torch.full((len(lengths),), 1.0 / longest),
    }[by]
    count = lengths.sum() if by == "tokens" else len(lengths)
    return (losses * learned * scale[:, None]).sum() / count


def averaged_answer(losses: Tensor, learned: Tensor, by: str, longest: int) -> Tensor:
    sums = (losses * learned).sum(1)
    if by == "tokens":
        return sums.sum() / learned.sum()
    return (sums / (learned.sum(1) if by == "sequences" else longest)).mean()


def _averaged_tokens(losses: Tensor, learned: Tensor, by: str, longest: int) -> Tensor:
    return averaged_answer(losses, learned, "tokens", longest)


def _averaged_with_padding(losses: Tensor, learned: Tensor, by: str, longest: int) -> Tensor:
    return losses.mean()


def asymmetric(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return policy.clipped_surrogate(ratio, advantage, low, high)[0]


def asymmetric_answer(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    near = ratio.clamp(1 - low, 1 + high)
    return -torch.minimum(ratio * advantage[:, None], near * advantage[:, None])


def verified(solution: str, reply: str) -> float:
    return Countdown(name="countdown").score(Question("", solution), reply)


def verified_answer(solution: str, reply: str) -> float:
    wanted, found = evaluated(solution), evaluated(reply)
    return float(wanted is not None and wanted == found)


def _value_alone(solution: str, reply: str) -> float:
    wanted, found = evaluated(solution), evaluated(reply)
    return float(wanted is not None and found is not None and wanted[0] == found[0])


def _same_text(solution: str, reply: str) -> float:
    return float(solution == reply)


def shuffled(rewards: Tensor, order: Tensor) -> Tensor:
    return rewards.flatten()[order].view_as(rewards)


def _ratios(g: torch.Generator) -> tuple[Tensor, Tensor]:
    return normal(g, 3, 4).mul(0.4).exp(), normal(g, 3)


MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])
EXERCISES = (
    Exercise(
        "grpo.mixed",
        "Say whether an answer of the group earned more than another.",
        mixed,
        lambda g: [([1.0, 0.0],), ([1.0, 1.0],), ([0.0, 0.0, 0.0],)],
        lambda rewards: max(rewards) > min(rewards),
        (
            Mistake("all right teaches as little as all wrong.",
                    lambda rewards: max(rewards) > 0),
        ),
    ),
    Exercise(
        "grpo.advantages",
        "Subtract the mean of each group, and divide by its standard deviation (n - 1) plus 1e-4.",
        advantages,
        lambda g: [(normal(g, 3, 4),), (torch.tensor([[1.0, 0.0], [1.0, 1.0]]),)],
        advantages_answer,
        (
            Mistake("answers of one prompt are compared with each other.", _advantages_of_batch),
            Mistake("divide by the deviation.",
                    lambda rewards: rewards - rewards.mean(1, keepdim=True)),
        ),
    ),
    Exercise(
        "grpo.leave_one_out",
        "Subtract from each reward the mean of the others in its group.",
        leave_one_out,
        lambda g: [(normal(g, 3, 4),), (torch.tensor([[1.0, 0.0]]),)],
        leave_one_out_answer,
        (
            Mistake("a reward is no part of its own baseline.",
                    lambda rewards: rewards - rewards.mean(1, keepdim=True)),
        ),
    ),
    Exercise(
        "grpo.verified",
        "Give 1.0 to an expression with the value and the numbers of the solution, each used once, "
        "else 0.0; `evaluated` of `culm.task.countdown` reads both.",
        verified,
        lambda g: [("(2+3)*4", "4*(3+2)"), ("(2+3)*4", "5*4"), ("(2+3)*4", "2+3*4"),
                   ("2+2", "2+2"), ("2*3", "two times three"), ("2*3", "6")],
        verified_answer,
        (
            Mistake("check which numbers stand in it: a policy finds every gap.", _value_alone),
            Mistake("another way to the value is right too.", _same_text),
        ),
    ),
    Exercise(
        "grpo.replaced",
        "Put the other groups, in order, in the places of groups with equal rewards, as far as "
        "they go.",
        replaced,
        lambda g: [([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]], [[1.0, 0.0]]),
                   ([[1.0, 1.0]], [[0.5, 0.0], [1.0, 0.0]])],
        replaced_answer,
        (
            Mistake("mixed groups stay in their places.", _replaced_first),
            Mistake("the batch keeps its size.", _left_out),
        ),
    ),
    Exercise(
        "grpo.averaged",
        "Average losses over tokens, over answers each by its own length, or over answers each by "
        "the limit.",
        averaged,
        lambda g: [(normal(g, 2, 4), MASK, by, 8) for by in ("tokens", "sequences", "constant")],
        averaged_answer,
        (
            Mistake("the three ways differ.", _averaged_tokens),
            Mistake("padding is no part of it.", _averaged_with_padding),
        ),
    ),
    Exercise(
        "grpo.sequence_ratio",
        "Give the geometric mean of the ratios of the learned tokens of each answer.",
        sequence_ratio,
        lambda g: [(normal(g, 2, 4), normal(g, 2, 4), MASK)],
        sequence_ratio_answer,
        (
            Mistake("the mean is taken of the logarithms.",
                    lambda new, old, learned: ((new - old).exp() * learned).sum(1)
                    / learned.sum(1)),
            Mistake("divide by the length.",
                    lambda new, old, learned: ((new - old) * learned).sum(1).exp()),
        ),
    ),
    Exercise(
        "grpo.asymmetric",
        "Clip the ratio at 1 - low and 1 + high; the loss is minus the smaller of both "
        "surrogates.",
        asymmetric,
        lambda g: [(*_ratios(g), 0.2, 0.28), (*_ratios(g), 0.1, 0.1)],
        asymmetric_answer,
        (
            Mistake("both bounds have their own width.",
                    lambda ratio, advantage, low, high: asymmetric_answer(
                        ratio, advantage, low, low)),
            Mistake("take the smaller of both surrogates.",
                    lambda ratio, advantage, low, high: -advantage[:, None] * ratio.clamp(
                        1 - low, 1 + high)),
        ),
    ),
    Exercise(
        "grpo.shuffled",
        "The control: give the rewards of all groups in the given order.",
        shuffled,
        lambda g: [(normal(g, 2, 3), torch.randperm(6, generator=g))],
        None,
        (
            Mistake("within a group they would still say how good its answers were.",
                    lambda rewards, order: rewards[:, order[order < rewards.shape[1]]]),
        ),
    ),
)  # fmt: skip
