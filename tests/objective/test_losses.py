"""Golden numbers, computed apart in float64 and checked against other implementations."""

import math

import pytest
import tiny
import torch
from learning import build
from torch import tensor

from culm.config import parse
from culm.objective.policy import (
    clipped_surrogate,
    generalised_advantages,
    group_advantages,
    inference_context,
)
from culm.objective.ppo import value_loss
from culm.objective.preference import FORMS, Preference, log_odds, preference_loss
from culm.objective.reward import bradley_terry
from culm.run.settings import TrainConfig

CHOSEN, REJECTED = tensor([-10.0, -20.0]), tensor([-12.0, -19.0])
REFERENCE_CHOSEN, REFERENCE_REJECTED = tensor([-11.0, -20.5]), tensor([-11.5, -19.5])
LENGTHS_CHOSEN, LENGTHS_REJECTED = tensor([5, 8]), tensor([6, 10])


@pytest.mark.parametrize(
    ("settings", "golden"),
    [
        ({"loss": "sigmoid"}, [0.62095705, 0.69314718]),
        ({"loss": "sigmoid", "smoothing": 0.1}, [0.63595705, 0.69314718]),
        ({"loss": "sigmoid", "length": "mean", "beta": 5.0}, [0.21714244, 0.66238538]),
        ({"loss": "robust", "smoothing": 0.1}, [0.60220705, 0.69314718]),
        ({"loss": "hinge"}, [0.85, 1.0]),
        ({"loss": "ipo", "length": "sum"}, [12.25, 25.0]),
        ({"loss": "ipo"}, [22.24694444, 24.87515625]),
        ({"loss": "simpo"}, [1.31326169, 2.30508332]),
        ({"loss": "orpo", "beta": 1.0}, [0.69314718, 1.08745291]),
        ({"loss": "apo_zero"}, [0.96252342, 1.0]),
        ({"loss": "sppo"}, [36.25, 50.5]),
    ],
)
def test_preference_losses(settings: dict, golden: list[float]) -> None:
    config = Preference(**settings)
    chosen, rejected = CHOSEN.double(), REJECTED.double()
    if FORMS[config.loss].reference:
        chosen, rejected = chosen - REFERENCE_CHOSEN, rejected - REFERENCE_REJECTED
    if config.length == "mean":
        chosen, rejected = chosen / LENGTHS_CHOSEN, rejected / LENGTHS_REJECTED
    found = preference_loss(chosen, rejected, config).tolist()
    assert found == pytest.approx(golden, abs=1e-8)


def test_log_odds_at_both_ends() -> None:
    p = tensor([1e-30, 1e-3, 0.3, 0.5, 0.7, 1 - 1e-3], dtype=torch.float64)
    logprob = p.log().requires_grad_()
    torch.testing.assert_close(log_odds(logprob), (p / (1 - p)).log())
    ends = tensor([-1e9, -0.7, -1e-6, 0.0], requires_grad=True)
    log_odds(ends).sum().backward()
    assert log_odds(ends).isfinite().all()
    assert ends.grad is not None
    assert ends.grad.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "hinge", "smoothing": 0.1}, "smoothing: hinge does not use it"),
        ({"gamma": 1.0}, "gamma: sigmoid does not use it; simpo does"),
        ({"loss": "ipo", "tail": 0.5}, "tail: an average over tokens has no length"),
    ],
)
def test_a_setting_that_the_loss_does_not_use_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(Preference, {"kind": "preference", **settings})


@pytest.mark.parametrize(
    ("settings", "averaged"),
    [
        ({}, False), ({"loss": "hinge"}, False), ({"loss": "ipo"}, True),
        ({"loss": "ipo", "length": "sum"}, False), ({"length": "mean"}, True),
    ],
)  # fmt: skip
def test_log_ratios_are_summed_or_averaged(settings: dict, averaged: bool) -> None:
    objective = build(Preference(**settings), tiny.model())
    with torch.no_grad():
        objective.model.embed.weight += 0.1
    batch = tiny.rows()
    ratio = (
        objective.model.logprobs(batch.tokens, batch.targets, inference_context(batch))
        - objective.reference.logprobs(batch.tokens, batch.targets, inference_context(batch))
    ).sum(-1)
    if averaged:
        ratio = ratio / (batch.targets >= 0).sum(-1)
    expected = preference_loss(ratio[0::2], ratio[1::2], objective.config).sum()
    torch.testing.assert_close(objective(batch).terms["preference"].total, expected)


def test_preference_gradient_and_symmetry() -> None:
    margin = tensor([1.5, -0.3, 0.0], dtype=torch.float64, requires_grad=True)
    config = Preference(beta=0.1)
    preference_loss(margin, torch.zeros(3), config).sum().backward()
    expected = -0.1 * torch.sigmoid(-0.1 * margin.detach())
    torch.testing.assert_close(margin.grad, expected)
    even = Preference(beta=0.1, smoothing=0.49999999)
    zero = torch.zeros(3)
    torch.testing.assert_close(
        preference_loss(margin, zero, even), preference_loss(-margin, zero, even)
    )


REWARDS = tensor([1.0, 0, 0, 1, 1, 0, 0, 0], dtype=torch.float64)


def test_advantages() -> None:
    scaled = group_advantages(REWARDS, 8, "group")
    assert scaled[0].item() == pytest.approx(1.20738144, abs=1e-8)
    assert scaled[1].item() == pytest.approx(-0.72442886, abs=1e-8)
    centred = group_advantages(REWARDS, 8, "none")
    assert centred[0].item() == pytest.approx(0.625)
    assert centred[1].item() == pytest.approx(-0.375)


def test_advantages_of_equal_rewards_are_zero_and_groups_are_apart() -> None:
    rewards = torch.cat([torch.ones(4), tensor([1.0, 0, 0, 0])])
    found = group_advantages(rewards, 4, "group")
    assert found[:4].tolist() == [0.0] * 4
    assert found[4] > 0 > found[5]
    torch.testing.assert_close(found[4:], group_advantages(rewards[4:], 4, "group"))


NEW = tensor([[-1, -0.5, -2], [-0.3, -0.7, 0]], dtype=torch.float64)
OLD = tensor([[-1.2, -0.5, -1.5], [-0.3, -1, 0]], dtype=torch.float64)
MASK = tensor([[1.0, 1, 1], [1, 1, 0]], dtype=torch.float64)
ADVANTAGE = tensor([1, -0.5], dtype=torch.float64)


def test_policy_losses() -> None:
    losses, clipped = clipped_surrogate(NEW, OLD, ADVANTAGE, 0.2, 0.2)
    losses = losses * MASK
    tokens = [[-1.2, -1.0, -0.60653066], [0.5, 0.67492940, 0.0]]
    torch.testing.assert_close(losses, tensor(tokens, dtype=torch.float64), atol=1e-8, rtol=0)
    assert clipped.tolist() == [[True, False, False], [False, False, False]]
    sequences = (losses.sum(1) / MASK.sum(1)).mean().item()
    assert sequences == pytest.approx(-0.17402276, abs=1e-8)
    assert (losses.sum() / MASK.sum()).item() == pytest.approx(-0.32632025, abs=1e-8)
    assert (losses.sum() / (2 * 4)).item() == pytest.approx(-0.20395016, abs=1e-8)
    higher = clipped_surrogate(NEW, OLD, ADVANTAGE, 0.2, 0.28)[0] * MASK
    assert (higher.sum() / MASK.sum()).item() == pytest.approx(-0.33060080, abs=1e-8)


def test_far_ratios_stay_finite() -> None:
    new = tensor([[0.0], [-900.0]], requires_grad=True)
    losses, _ = clipped_surrogate(new, tensor([[-900.0], [0.0]]), tensor([-1.0, 1.0]), 0.2, 0.2)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert new.grad is not None
    assert new.grad.isfinite().all()


def test_a_group_of_one_has_nothing_to_compare() -> None:
    train = {"steps": 1, "objective": "grpo", "rollout": {"group": 1}}
    with pytest.raises(ValueError, match=r"rollout\.group: grpo compares at least 2 completions"):
        parse(TrainConfig, train)


def test_generalised_advantages_golden_and_by_brute_force() -> None:
    """Golden numbers of verl's function, and the sum of the definition."""
    rewards = tensor([[0.0, 0, 0, 1]], dtype=torch.float64)
    values = tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    learned = torch.ones(1, 4, dtype=torch.bool)
    found = generalised_advantages(rewards, values, learned, 1.0, 0.95)
    assert found[0].tolist() == pytest.approx([0.799675, 0.7365, 0.67, 0.6], abs=1e-9)
    returns = found + values
    assert returns[0].tolist() == pytest.approx([0.899675, 0.9365, 0.97, 1.0], abs=1e-9)
    ahead = torch.cat([values[:, 1:], torch.zeros(1, 1)], 1)
    for gamma, decay in ((0.9, 0.8), (1.0, 1.0), (0.5, 0.0)):
        found = generalised_advantages(rewards, values, learned, gamma, decay)
        deltas = rewards + gamma * ahead - values
        for t in range(4):
            wanted = sum((gamma * decay) ** k * deltas[0, t + k] for k in range(4 - t))
            assert float(found[0, t]) == pytest.approx(float(wanted), abs=1e-12)


def test_tokens_that_are_not_learned_do_not_move_advantages() -> None:
    """Padding behind, and what a tool wrote in between."""
    rewards = tensor([[0.0, 0, 0, 1]], dtype=torch.float64)
    values = tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    plain = generalised_advantages(rewards, values, torch.ones(1, 4, dtype=torch.bool), 0.9, 0.8)
    places = [1, 2, 5, 7]
    wide = torch.full((2, 1, 9), 7.0, dtype=torch.float64)
    wide[0, 0, places], wide[1, 0, places] = rewards[0], values[0]
    learned = torch.zeros(1, 9, dtype=torch.bool)
    learned[0, places] = True
    found = generalised_advantages(wide[0], wide[1], learned, 0.9, 0.8)
    assert torch.equal(found[0, places], plain[0])
    assert (found[~learned] == 0).all()


def test_bradley_terry_golden() -> None:
    chosen, rejected = tensor([1.2], dtype=torch.float64), tensor([0.3], dtype=torch.float64)
    assert bradley_terry(chosen, rejected).item() == pytest.approx(0.34115387, abs=1e-8)
    assert bradley_terry(chosen, rejected, 1.0).item() == pytest.approx(0.74439666, abs=1e-8)
    shifted = bradley_terry(chosen + 5, rejected + 5)
    torch.testing.assert_close(shifted, bradley_terry(chosen, rejected))


def test_the_value_loss_is_the_worse_of_two() -> None:
    """A value that moved further than the clip is held to the return from where it was."""
    values, old = tensor([0.9, 0.1, 0.5]), tensor([0.0, 0.0, 0.5])
    found = value_loss(values, old, tensor([1.0, 1.0, 1.0]), 0.2)
    assert found.tolist() == pytest.approx([0.5 * 0.64, 0.5 * 0.81, 0.5 * 0.25])


def test_log_two() -> None:
    zero = torch.zeros(1)
    assert preference_loss(zero, zero, Preference()).item() == pytest.approx(math.log(2), abs=1e-7)
