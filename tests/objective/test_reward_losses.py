"""Losses of reward models: by definition, by golden numbers, and by counting orders."""

import itertools
import math

import pytest
import torch
from parity import Parity, assert_equal
from torch import Tensor, tensor

from culm.objective.reward_losses import (
    bradley_terry,
    margin_ranking,
    ordered_share,
    plackett_luce,
)

CHOSEN, REJECTED = tensor([1.2], dtype=torch.float64), tensor([0.3], dtype=torch.float64)


def test_bradley_terry_golden(parity: Parity) -> None:
    plain, margin = bradley_terry(CHOSEN, REJECTED), bradley_terry(CHOSEN, REJECTED, 1.0)
    parity.golden("reward", "Bradley-Terry", plain.tolist(), [0.34115387])
    parity.golden("reward", "Bradley-Terry, margins", margin.tolist(), [0.74439666])
    shifted = bradley_terry(CHOSEN + 5, REJECTED + 5)
    torch.testing.assert_close(shifted, bradley_terry(CHOSEN, REJECTED))


def test_smoothing_mixes_both_orders(parity: Parity) -> None:
    right, swapped = bradley_terry(CHOSEN, REJECTED), bradley_terry(REJECTED, CHOSEN)
    found = bradley_terry(CHOSEN, REJECTED, smoothing=0.1)
    torch.testing.assert_close(found, 0.9 * right + 0.1 * swapped)
    # 0.9 * 0.34115387 + 0.1 * (0.34115387 + 0.9)
    parity.golden("reward", "Bradley-Terry, smoothing", found.tolist(), [0.43115387])


def test_margin_ranking_asks_for_no_more_than_the_margin(parity: Parity) -> None:
    chosen, rejected = tensor([1.2, 3.0, 0.0]), tensor([0.3, 1.0, 1.0])
    found = margin_ranking(chosen, rejected).tolist()
    parity.golden("reward", "margin ranking", found, [0.1, 0.0, 2.0], within=1e-6)
    ours, theirs = (torch.stack([chosen, rejected]).requires_grad_() for _ in range(2))
    loss = torch.nn.MarginRankingLoss(margin=1.0)
    difference = assert_equal(
        margin_ranking(*ours).mean(),
        loss(*theirs, torch.ones(3)),
        lambda: [("rewards", ours.grad, theirs.grad)],
    )
    parity.note("reward", "margin ranking", "PyTorch MarginRankingLoss", difference)
    assert margin_ranking(chosen, rejected, tensor([0.5, 3.0, 0.0])).tolist() == pytest.approx(
        [0.0, 1.0, 1.0]
    )


def order_loss(rewards: Tensor, order: tuple[int, ...]) -> float:
    """-sum over k of log softmax(r_k:K)_k, as the equation is written."""
    listed = [rewards[index].item() for index in order]
    return sum(
        math.log(sum(map(math.exp, listed[place:]))) - listed[place] for place in range(len(listed))
    )


def test_plackett_luce_is_a_distribution_over_orders(parity: Parity) -> None:
    chance = torch.Generator().manual_seed(0)
    rewards, total = torch.randn(4, generator=chance, dtype=torch.float64), 0.0
    for order in itertools.permutations(range(4)):
        scores = torch.zeros(4)
        scores[list(order)] = tensor([4.0, 3.0, 2.0, 1.0])
        found = plackett_luce(rewards, scores, torch.zeros(4)).sum().item()
        written = order_loss(rewards, order)
        parity.equal("reward", "Plackett-Luce", "definition", [found], [written], 1e-9)
        total += math.exp(-found)
    assert total == pytest.approx(1, abs=1e-9)


def test_plackett_luce_of_two_is_bradley_terry_and_rankings_do_not_touch() -> None:
    rewards = tensor([1.2, 0.3, 0.3, 1.2, 7.0])
    found = plackett_luce(rewards, tensor([2.0, 1, 1, 2, 0]), tensor([0, 0, 1, 1, 2]))
    pair = bradley_terry(CHOSEN, REJECTED).item()
    assert found.tolist() == pytest.approx([pair, 0, 0, pair, 0], abs=1e-6)
    alone = plackett_luce(rewards[:2], tensor([2.0, 1]), torch.zeros(2))
    torch.testing.assert_close(alone, found[:2])


def test_equal_scores_are_chosen_from_all_of_them() -> None:
    found = plackett_luce(tensor([0.5, 1.0, 2.0]), tensor([2.0, 1.0, 1.0]), torch.zeros(3))
    last = math.log(math.exp(1) + math.exp(2))
    first = math.log(math.exp(0.5) + math.exp(1) + math.exp(2))
    assert found.tolist() == pytest.approx([first - 0.5, last - 1, last - 2], abs=1e-6)


def test_the_share_in_the_right_order_counts_other_scores_alone() -> None:
    rewards = tensor([3.0, 1.0, 2.0, 5.0, 5.0])
    scores, rankings = tensor([3.0, 2, 2, 1, 0]), tensor([0, 0, 0, 1, 1])
    assert ordered_share(rewards, scores, rankings).item() == pytest.approx(1.0)  # 2 / 2 and 0 / 1
    swapped = ordered_share(tensor([2.0, 1, 3, 5, 4]), scores, rankings)
    assert swapped.item() == pytest.approx(0.5 + 1)
