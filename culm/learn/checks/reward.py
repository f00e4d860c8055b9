"""Exercises of lesson 7: losses of reward models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.learn.dialogues import padded
from culm.learn.exercise import Exercise, Mistake, normal
from culm.objective import reward, reward_losses


def better(chosen: Tensor, rejected: Tensor) -> Tensor:
    return (-reward_losses.bradley_terry(chosen, rejected)).exp()


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: float) -> Tensor:
    return reward_losses.bradley_terry(chosen, rejected, margin)


def bradley_terry_answer(chosen: Tensor, rejected: Tensor, margin: float) -> Tensor:
    return F.softplus(margin - chosen + rejected)


def smoothed(chosen: Tensor, rejected: Tensor, share: float) -> Tensor:
    return reward_losses.bradley_terry(chosen, rejected, 0.0, share)


def smoothed_answer(chosen: Tensor, rejected: Tensor, share: float) -> Tensor:
    away = chosen - rejected
    return -(1 - share) * F.logsigmoid(away) - share * F.logsigmoid(-away)


def margin_ranking(chosen: Tensor, rejected: Tensor, margin: float) -> Tensor:
    return reward_losses.margin_ranking(chosen, rejected, margin)


def margin_ranking_answer(chosen: Tensor, rejected: Tensor, margin: float) -> Tensor:
    return torch.relu(margin - chosen + rejected)


def at_the_end(scores: Tensor, lengths: Tensor) -> Tensor:
    rows = [([0] * n, [True] * n) for n in lengths.tolist()]
    return reward.last_scores(scores[..., None], padded(rows))[:, 0]


def at_the_end_answer(scores: Tensor, lengths: Tensor) -> Tensor:
    return scores[torch.arange(len(scores)), lengths - 1]


def ranking(rewards: Tensor) -> Tensor:
    scores = -torch.arange(len(rewards)).float()
    return reward_losses.plackett_luce(rewards, scores, torch.zeros(len(rewards))).sum()


def ranking_answer(rewards: Tensor) -> Tensor:
    chosen = [rewards[n:].log_softmax(0)[0] for n in range(len(rewards))]
    return -torch.stack(chosen).sum()


def _ranking_of_all(rewards: Tensor) -> Tensor:
    return -rewards.log_softmax(0).sum()


def _pairs(g: torch.Generator) -> tuple[Tensor, Tensor]:
    return normal(g, 5), normal(g, 5)


EXERCISES = (
    Exercise(
        "reward.better",
        "Give the probability that the first answer is preferred: the sigmoid of the difference.",
        better,
        lambda g: [_pairs(g), (torch.zeros(2), torch.zeros(2))],
        lambda chosen, rejected: (chosen - rejected).sigmoid(),
        (
            Mistake(
                "the difference decides, not the ratio.",
                lambda chosen, rejected: chosen / (chosen + rejected),
            ),
            Mistake(
                "the first answer is preferred if its reward is higher.",
                lambda chosen, rejected: (rejected - chosen).sigmoid(),
            ),
        ),
    ),
    Exercise(
        "reward.bradley_terry",
        "Give -log sigmoid(chosen - rejected - margin) of each pair, finite for large differences.",
        bradley_terry,
        lambda g: [(*_pairs(g), 0.0), (*_pairs(g), 1.0),
                   (torch.tensor([-300.0]), torch.tensor([300.0]), 0.0)],
        bradley_terry_answer,
        (
            Mistake(
                "the log of a rounded 0 is -inf; use logsigmoid or softplus.",
                lambda chosen, rejected, margin: -(chosen - rejected - margin).sigmoid().log(),
            ),
            Mistake(
                "the margin makes it harder.",
                lambda chosen, rejected, margin: F.softplus(-margin - chosen + rejected),
            ),
        ),
    ),
    Exercise(
        "reward.smoothed",
        "Weigh the losses of the pair as given and as swapped by 1 - share and share.",
        smoothed,
        lambda g: [(*_pairs(g), 0.1), (*_pairs(g), 0.0)],
        smoothed_answer,
        (
            Mistake(
                "the swapped pair has a loss too.",
                lambda chosen, rejected, share: -(1 - share) * F.logsigmoid(chosen - rejected),
            ),
            Mistake(
                "the share is that of the swapped pairs.",
                lambda chosen, rejected, share: smoothed_answer(rejected, chosen, share),
            ),
        ),
    ),
    Exercise(
        "reward.margin_ranking",
        "Give what each pair lacks of the margin; 0 if it has it.",
        margin_ranking,
        lambda g: [(*_pairs(g), 1.0), (torch.tensor([3.0]), torch.tensor([0.0]), 1.0)],
        margin_ranking_answer,
        (
            Mistake(
                "a pair that has the margin costs nothing.",
                lambda chosen, rejected, margin: margin - chosen + rejected,
            ),
            Mistake(
                "without a margin, equal rewards would be perfect.",
                lambda chosen, rejected, margin: torch.relu(rejected - chosen),
            ),
        ),
    ),
    Exercise(
        "reward.at_the_end",
        "Take the score at the last real token of each row; padding follows it.",
        at_the_end,
        lambda g: [
            (normal(g, 3, 5), torch.tensor([5, 2, 3])),
            (normal(g, 1, 4), torch.tensor([4])),
        ],
        at_the_end_answer,
        (
            Mistake("the last column may be padding.", lambda scores, lengths: scores[:, -1]),
            Mistake(
                "one score counts, not their mean.", lambda scores, lengths: scores.mean(1)
            ),
        ),
    ),
    Exercise(
        "reward.ranking",
        "Rewards from the best answer to the worst: give -log of the probability of this order, if "
        "answers are chosen one after the other by the softmax of those that are left.",
        ranking,
        lambda g: [(normal(g, 4),), (normal(g, 2),), (torch.zeros(3),)],
        ranking_answer,
        (
            Mistake("an answer that was chosen is out of the softmax.", _ranking_of_all),
            Mistake(
                "all places count, not the best alone.",
                lambda rewards: -rewards.log_softmax(0)[0],
            ),
        ),
    ),
)  # fmt: skip
