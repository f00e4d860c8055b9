"""Golden numbers, computed apart in float64 and checked against other implementations."""

import math

import pytest
import tiny
import torch
from learning import build
from parity import Difference, Parity
from torch import tensor

from culm.config import Config, SettingError, parse
from culm.objective.distill import Distill
from culm.objective.grpo import GRPO, VARIANTS
from culm.objective.policy import (
    clipped_surrogate,
    clipped_weight,
    divergence,
    generalised_advantages,
    group_advantages,
    importance_ratio,
    inference_context,
    sampler_weights,
    value_loss,
)
from culm.objective.ppo import PPO
from culm.objective.preference import FORMS, Preference, log_odds, preference_loss
from culm.rollout.reward.ensemble import Ensemble
from culm.rollout.reward.judge import Judge
from culm.run.train_settings import TrainConfig

CHOSEN, REJECTED = tensor([-10.0, -20.0]), tensor([-12.0, -19.0])
REFERENCE_CHOSEN, REFERENCE_REJECTED = tensor([-11.0, -20.5]), tensor([-11.5, -19.5])
LENGTHS_CHOSEN, LENGTHS_REJECTED = tensor([5, 8]), tensor([6, 10])


@pytest.mark.parametrize(
    ("variant", "settings", "golden"),
    [
        ("DPO", {"loss": "sigmoid"}, [0.62095705, 0.69314718]),
        ("cDPO", {"loss": "sigmoid", "smoothing": 0.1}, [0.63595705, 0.69314718]),
        ("DPO-norm", {"loss": "sigmoid", "length": "mean", "beta": 5}, [0.21714244, 0.66238538]),
        ("robust DPO", {"loss": "robust", "smoothing": 0.1}, [0.60220705, 0.69314718]),
        ("hinge", {"loss": "hinge"}, [0.85, 1.0]),
        ("IPO, sum", {"loss": "ipo", "length": "sum"}, [12.25, 25.0]),
        ("IPO, mean", {"loss": "ipo"}, [22.24694444, 24.87515625]),
        ("SimPO", {"loss": "simpo"}, [1.31326169, 2.30508332]),
        ("ORPO, odds ratio", {"loss": "orpo", "beta": 1.0}, [0.69314718, 1.08745291]),
        ("APO-zero", {"loss": "apo_zero"}, [0.96252342, 1.0]),
        ("SPPO", {"loss": "sppo"}, [36.25, 50.5]),
    ],
)
def test_preference_losses(
    variant: str, settings: dict, golden: list[float], parity: Parity
) -> None:
    config = Preference(**settings)
    chosen, rejected = CHOSEN.double(), REJECTED.double()
    if FORMS[config.loss].reference:
        chosen, rejected = chosen - REFERENCE_CHOSEN, rejected - REFERENCE_REJECTED
    if config.length == "mean":
        chosen, rejected = chosen / LENGTHS_CHOSEN, rejected / LENGTHS_REJECTED
    found = preference_loss(chosen, rejected, config).tolist()
    parity.golden("preference", variant, found, golden)


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


def test_advantages(parity: Parity) -> None:
    scaled = group_advantages(REWARDS, 8, "group")
    parity.golden("grpo", "GRPO", scaled[:2].tolist(), [1.20738144, -0.72442886])
    centred = group_advantages(REWARDS, 8, "none")
    parity.golden("grpo", "Dr. GRPO", centred[:2].tolist(), [0.625, -0.375])


def test_advantages_by_other_baselines(parity: Parity) -> None:
    others = group_advantages(REWARDS, 8, "none", "others")
    parity.golden("grpo", "RLOO", others[:2].tolist(), [0.71428571, -0.42857143])
    assert group_advantages(REWARDS, 8, "none", "none").tolist() == REWARDS.tolist()


@pytest.mark.parametrize("baseline", ["mean", "others", "none"])
@pytest.mark.parametrize("scale", ["group", "none"])
def test_what_has_no_reward_is_left_out_of_its_group(baseline: str, scale: str) -> None:
    rewards = REWARDS.clone()
    rewards[2] = math.nan
    found = group_advantages(rewards, 8, scale, baseline)  # type: ignore[arg-type]
    known = ~rewards.isnan()
    without = group_advantages(rewards[known], 7, scale, baseline)  # type: ignore[arg-type]
    torch.testing.assert_close(found[known], without)
    assert found[2] == 0
    nothing = group_advantages(torch.full((4,), math.nan), 4, scale, baseline)  # type: ignore[arg-type]
    assert (nothing == 0).all()


def test_advantages_of_equal_rewards_are_zero_and_groups_are_apart() -> None:
    rewards = torch.cat([torch.ones(4), tensor([1.0, 0, 0, 0])])
    found = group_advantages(rewards, 4, "group")
    assert found[:4].tolist() == [0.0] * 4
    assert found[4] > 0 > found[5]
    torch.testing.assert_close(found[4:], group_advantages(rewards[4:], 4, "group"))


@pytest.mark.parametrize("baseline", ["mean", "others"])
@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("reward", [0.1, 0.7, 1 / 3, -1e-3])
def test_rounding_is_no_advantage(reward: float, scale: str, baseline: str) -> None:
    """The mean of 8 times 0.7 in fp32 is another number, and a small deviation divides much."""
    for group in range(2, 20):
        found = group_advantages(torch.full((group,), reward), group, scale, baseline)  # type: ignore[arg-type]
        assert found.dtype == torch.float32
        assert (found == 0).all(), group


NEW = tensor([[-1, -0.5, -2], [-0.3, -0.7, 0]], dtype=torch.float64)
OLD = tensor([[-1.2, -0.5, -1.5], [-0.3, -1, 0]], dtype=torch.float64)
MASK = tensor([[1.0, 1, 1], [1, 1, 0]], dtype=torch.float64)
ADVANTAGE = tensor([1, -0.5], dtype=torch.float64)


RATIO = importance_ratio(NEW, OLD, MASK > 0, "token")


def test_policy_losses(parity: Parity) -> None:
    losses, clipped = clipped_surrogate(RATIO, ADVANTAGE, 0.2, 0.2)
    losses = losses * MASK
    tokens = [[-1.2, -1.0, -0.60653066], [0.5, 0.67492940, 0.0]]
    torch.testing.assert_close(losses, tensor(tokens, dtype=torch.float64), atol=1e-8, rtol=0)
    assert clipped.tolist() == [[True, False, False], [False, False, False]]
    higher = clipped_surrogate(RATIO, ADVANTAGE, 0.2, 0.28)[0] * MASK
    means = {
        "GRPO": ((losses.sum(1) / MASK.sum(1)).mean(), -0.17402276),
        "GRPO, mean over tokens": (losses.sum() / MASK.sum(), -0.32632025),
        "Dr. GRPO": (losses.sum() / (2 * 4), -0.20395016),
        "DAPO": (higher.sum() / MASK.sum(), -0.33060080),
    }
    for variant, (found, golden) in means.items():
        parity.golden("grpo", variant, [found.item()], [golden])
    parity.golden(
        "ppo", "clipped surrogate", losses[MASK > 0].tolist(), [*tokens[0], *tokens[1][:2]]
    )


def test_ratios_of_sequences_golden(parity: Parity) -> None:
    ratio = importance_ratio(NEW, OLD, MASK > 0, "sequence")
    assert ratio[:, 0].tolist() == pytest.approx([0.90483742, 1.16183424], abs=1e-8)
    losses = clipped_surrogate(ratio, ADVANTAGE, 3e-4, 4e-4)[0] * MASK
    sequences = (losses.sum(1) / MASK.sum(1)).mean().item()
    parity.golden("grpo", "GSPO", [sequences], [-0.16196015])
    product = importance_ratio(NEW, OLD, MASK > 0, "product")
    expected = ((NEW - OLD) * MASK).sum(1).exp()
    torch.testing.assert_close(product, expected[:, None].expand(2, 3))


def test_clipped_weights_golden_and_keep_every_gradient(parity: Parity) -> None:
    new = NEW.clone().requires_grad_()
    losses, clipped = clipped_weight(new, RATIO, ADVANTAGE, 0.28)
    average = ((losses * MASK).sum() / MASK.sum()).item()
    parity.golden("grpo", "CISPO", [average], [0.46729282])
    assert (clipped & (MASK > 0)).tolist() == [[False] * 3, [False, True, False]]
    losses.sum().backward()
    torch.testing.assert_close(new.grad, -ADVANTAGE[:, None] * RATIO.clamp_max(1.28))


def test_a_dual_clip_bounds_the_loss_of_bad_tokens(parity: Parity) -> None:
    ratio = tensor([[9.0, 9.0]], dtype=torch.float64)
    worse = tensor([[-1.0, 1.0]], dtype=torch.float64)
    assert clipped_surrogate(ratio, worse, 0.2, 0.2)[0].tolist() == [[9.0, -1.2]]
    losses, clipped = clipped_surrogate(ratio, worse, 0.2, 0.2, dual=3.0)
    parity.golden("ppo", "dual clip", losses[0].tolist(), [3.0, -1.2])
    assert clipped.tolist() == [[True, True]]


def test_estimates_of_divergence_golden(parity: Parity) -> None:
    new = tensor([-1.0, -2.0, -0.5], dtype=torch.float64)
    reference = tensor([-1.2, -1.5, -0.5], dtype=torch.float64)
    golden = {
        "k1": [0.2, -0.5, 0.0], "k2": [0.02, 0.125, 0.0], "k3": [0.01873075, 0.14872127, 0.0],
    }  # fmt: skip
    for name, values in golden.items():
        found = divergence(new, reference, name).tolist()  # type: ignore[arg-type]
        parity.golden("grpo", f"KL estimate {name}", found, values)


def test_gradients_of_estimates_by_enumeration(parity: Parity) -> None:
    """As losses: none of k1, that of KL(pi || ref) of k2, that of KL(ref || pi) of k3."""
    logits = tensor([0.3, -0.2, 1.0, 0.1], dtype=torch.float64, requires_grad=True)
    reference = tensor([0.5, 0.1, -0.3, 0.2], dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    weights = policy.exp().detach()
    forward = (policy.exp() * (policy - reference)).sum()
    backward = (reference.exp() * (reference - policy)).sum()
    wanted = {"k1": 0.0 * forward, "k2": forward, "k3": backward}
    for name, other in wanted.items():
        loss = (weights * divergence(policy, reference, name)).sum()  # type: ignore[arg-type]
        (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
        (expected,) = torch.autograd.grad(other, logits, retain_graph=True)
        torch.testing.assert_close(found, expected)
        if name != "k1":  # whose gradient is zero
            away = float((found - expected).abs().max() / expected.abs().max())
            parity.note("grpo", f"KL estimate {name}", "enumeration", Difference(0.0, away))


def test_weights_for_another_sampler() -> None:
    learned = MASK > 0
    token = sampler_weights(NEW, OLD, learned, "token", 1.3)
    torch.testing.assert_close(token[learned], (NEW - OLD).exp().clamp_max(1.3)[learned])
    whole = sampler_weights(NEW, OLD, learned, "sequence", 1.3)
    assert whole[:, 0].tolist() == pytest.approx([math.exp(-0.3), 1.3])
    assert sampler_weights(NEW, OLD, learned, "mask", 1.3)[:, 0].tolist() == [1.0, 0.0]
    assert (sampler_weights(NEW, OLD, learned, "none", 1.3) == 1).all()
    assert not sampler_weights(NEW.clone().requires_grad_(), OLD, learned, "token", 2).requires_grad


def test_corrected_estimates_are_those_of_the_trainer() -> None:
    """By enumeration: the sampler draws from another distribution than the policy."""
    generator = torch.Generator().manual_seed(0)
    policy, sampler = torch.randn(2, 64, generator=generator, dtype=torch.float64).log_softmax(1)
    value = torch.randn(64, generator=generator, dtype=torch.float64)
    old, other = policy[:, None], sampler[:, None]
    one = torch.ones(64, 1, dtype=torch.bool)
    wanted = float((policy.exp() * value).sum())

    def estimate(kind: str, cap: float) -> float:
        weights = sampler_weights(old, other, one, kind, cap)  # type: ignore[arg-type]
        return float((sampler.exp() * weights[:, 0] * value).sum())

    assert estimate("sequence", 1e9) == pytest.approx(wanted)
    assert abs(estimate("token", 4.0) - wanted) < abs(estimate("none", 1.0) - wanted)


def test_far_ratios_stay_finite() -> None:
    new = tensor([[0.0], [-900.0]], requires_grad=True)
    one = torch.ones(2, 1, dtype=torch.bool)
    ratio = importance_ratio(new, tensor([[-900.0], [0.0]]), one, "token")
    losses, _ = clipped_surrogate(ratio, tensor([-1.0, 1.0]), 0.2, 0.2)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert new.grad is not None
    assert new.grad.isfinite().all()


def test_a_group_of_one_has_nothing_to_compare() -> None:
    train = {"steps": 1, "objective": "grpo", "rollout": {"group": 1}}
    with pytest.raises(ValueError, match=r"rollout\.group: grpo compares at least 2 completions"):
        parse(TrainConfig, train)


def test_a_group_of_one_is_not_replaced_for_its_equal_rewards() -> None:
    train = {"steps": 1, "objective": "ppo", "rollout": {"group": 1, "resample": 2}}
    with pytest.raises(ValueError, match=r"rollout\.resample: the rewards of one completion"):
        parse(TrainConfig, train)


@pytest.mark.parametrize("order", [1, -1])
def test_each_of_several_rewards_says_what_group_it_needs(order: int) -> None:
    judge = {"kind": "judge", "model": "m", "url": "http://localhost/v1"}
    rewards = [{**judge, "label": "pairs"}, {**judge, "label": "alone", "form": "rating"}][::order]
    objective = {"kind": "grpo", "variant": "reinforce++"}
    train = {"steps": 1, "objective": objective, "rollout": {"group": 1}, "reward": rewards}
    with pytest.raises(ValueError, match=r"rollout\.group: judge compares at least 2 completions"):
        parse(TrainConfig, train)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"baseline": "none"}, "scale: group needs a baseline"),
        ({"variant": "cispo", "clip_low": 0.1}, "clip_low: it has an effect with surrogate=clip"),
        ({"variant": "rloo", "kl_estimate": "k2"}, "kl_estimate: it has an effect with kl_in=loss"),
        ({"correction_cap": 5.0}, "correction_cap: it has an effect with a correction"),
    ],
)
def test_settings_of_grpo_that_blow_up_or_do_nothing(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(GRPO, {"kind": "grpo", **settings})
    for variant in VARIANTS:  # what a run wrote down is read again
        config = GRPO(variant=variant)
        assert parse(GRPO, config.model_dump()) == config


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (PPO, {"kl_horizon": 5}, "kl_horizon: it has an effect with kl_target only"),
        (Distill, {"teacher": "x", "beta": 0.2}, "beta: it has an effect with divergence=jsd only"),
        (Judge, {"model": "m", "url": "http://a/v1", "scale": 5}, "scale: it has an effect with"),
        (Ensemble, {"paths": ["a", "b"], "k": 2.0}, "k: it has an effect with combine=deviation"),
    ],
)  # fmt: skip
def test_settings_without_an_effect(kind: type[Config], settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        parse(kind, settings)


def test_generalised_advantages_golden_and_by_brute_force(parity: Parity) -> None:
    """Golden numbers of verl's function, and the sum of the definition."""
    rewards = tensor([[0.0, 0, 0, 1]], dtype=torch.float64)
    values = tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    learned = torch.ones(1, 4, dtype=torch.bool)
    found = generalised_advantages(rewards, values, learned, 1.0, 0.95)
    golden = [0.799675, 0.7365, 0.67, 0.6], [0.899675, 0.9365, 0.97, 1.0]
    parity.golden("ppo", "GAE", found[0].tolist(), golden[0])
    parity.golden("ppo", "returns", (found + values)[0].tolist(), golden[1])
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


def test_the_value_loss_is_the_worse_of_two(parity: Parity) -> None:
    """A value that moved further than the clip is held to the return from where it was."""
    values, old = tensor([0.9, 0.1, 0.5]), tensor([0.0, 0.0, 0.5])
    found = value_loss(values, old, tensor([1.0, 1.0, 1.0]), 0.2)
    wanted = [0.5 * 0.64, 0.5 * 0.81, 0.5 * 0.25]
    parity.golden("ppo", "value clipping", found.tolist(), wanted, within=1e-6)


def test_log_two() -> None:
    zero = torch.zeros(1)
    assert preference_loss(zero, zero, Preference()).item() == pytest.approx(math.log(2), abs=1e-7)
