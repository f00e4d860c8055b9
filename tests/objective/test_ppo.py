"""PPO: advantages by the definition, and a policy and a critic that learn, with a control."""

import copy
from dataclasses import replace

import pytest
import tiny
import torch
from learning import build, fit, mean
from parity import Parity, assert_equal
from rolling import model, rollouts
from tiny import experience, rows

from culm.adapt.lora import LoRA
from culm.objective.grpo import GRPO
from culm.objective.policy import generalised_advantages, inference_context, last_learned
from culm.objective.ppo import PPO, AdaptiveKL
from culm.optim.adamw import AdamW
from culm.parallel.ranks import Ranks
from culm.rollout.trajectory import without_targets


def test_prepare_gives_what_the_definition_says(parity: Parity) -> None:
    objective = build(PPO(kl=0.1, whiten=False, gamma=0.9, decay=0.8), tiny.model())
    with torch.no_grad():  # away from the reference
        objective.model.head.weight.add_(0.1 * torch.randn_like(objective.model.head.weight))
    rewards = torch.tensor([1.0, 0, 0, 1, 0.5, 0, 0, 0])
    batch = objective.prepare(experience(rewards, group=1))
    learned = batch.targets >= 0
    new = objective.model.logprobs(rows().tokens, rows().targets)
    start = objective.reference.logprobs(rows().tokens, rows().targets)
    torch.testing.assert_close(batch.extra["old"], new)
    divergence = (new - start) * learned
    assert divergence.abs().max() > 1e-3
    given = last_learned(learned) * rewards[:, None] - 0.1 * divergence
    values = objective.critic.scores(rows().tokens)
    advantages = generalised_advantages(given, values, learned, 0.9, 0.8)
    torch.testing.assert_close(batch.extra["advantages"], advantages)
    columns = (batch.extra["advantages"].flatten().tolist(), advantages.flatten().tolist())
    parity.equal("ppo", "advantages, KL in the reward", "definition", *columns, 1e-5)
    torch.testing.assert_close(batch.extra["returns"], (advantages + values) * learned)
    assert batch.metrics["kl"] == pytest.approx(divergence.sum(1).mean().item())
    assert (last_learned(learned).sum(1) == 1).all()


@pytest.mark.parametrize("settings", [{}, {"dual_clip": 1.3}], ids=["plain", "dual clip"])
def test_the_loss_after_an_update_by_definition(settings: dict, parity: Parity) -> None:
    """Of the policy and of the critic, both with their clips."""
    objective = build(PPO(value_clip=0.05, **settings), tiny.model())
    batch = objective.prepare(experience(torch.arange(8.0), group=1))
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.mul_(1.3)
    other, critic = copy.deepcopy(objective.model), copy.deepcopy(objective.critic)
    learned, column = batch.targets >= 0, batch.extra
    ratio = (other.logprobs(batch.tokens, batch.targets) - column["old"]).exp()
    values = critic.scores(batch.tokens)
    gain = torch.minimum(ratio * column["advantages"], ratio.clamp(0.8, 1.2) * column["advantages"])
    if settings:
        bad = column["advantages"] < 0
        gain = gain.where(~bad, torch.maximum(gain, 1.3 * column["advantages"]))
    bounded = column["values"] + (values - column["values"]).clamp(-0.05, 0.05)
    errors = torch.maximum(*((one - column["returns"]).square() for one in (values, bounded)))
    assert ((ratio - 1).abs()[learned] > 0.2).any()
    assert (values != bounded)[learned].any()
    pairs = [
        (f"{name}.{part}", ours, theirs)
        for name, mine, copied in (
            ("policy", objective.model, other), ("critic", objective.critic, critic),
        )
        for (part, ours), theirs in zip(mine.named_parameters(), copied.parameters(), strict=True)
    ]  # fmt: skip
    found = assert_equal(
        mean(objective(batch), batch),
        -gain[learned].mean() + 0.1 * 0.5 * errors[learned].mean(),
        lambda: [(name, ours.grad, theirs.grad) for name, ours, theirs in pairs],
    )
    variant = "policy and critic, dual clip" if settings else "policy and critic, both clipped"
    parity.note("ppo", variant, "definition", found)


def test_whitened_advantages_golden(parity: Parity) -> None:
    played = experience(torch.arange(8.0), group=1)
    mask = torch.zeros(played.learned.shape, dtype=torch.bool)
    mask[0, :3], mask[1, 2] = True, True
    values = torch.zeros(mask.shape, dtype=torch.float64)
    values[mask] = torch.tensor([0.799675, 0.7365, 0.67, 0.6], dtype=torch.float64)
    golden = [1.14183702, 0.40674444, -0.36703722, -1.18154424]
    found = played.whiten(values, mask)[mask].tolist()
    parity.golden("ppo", "whitening", found, golden, within=2e-6)  # its epsilon is in the root


def test_advantages_are_whitened_over_the_whole_rollout() -> None:
    objective = build(PPO(), tiny.model())
    batch = objective.prepare(experience(torch.arange(8.0), group=1))
    learned = batch.targets >= 0
    found = batch.extra["advantages"][learned]
    assert abs(float(found.mean())) < 1e-6
    assert abs(float(found.std()) - 1) < 1e-5
    assert (batch.extra["advantages"][~learned] == 0).all()


def test_the_first_update_has_a_ratio_of_one() -> None:
    objective = build(PPO(), tiny.model())
    batch = objective.prepare(experience(torch.arange(8.0), group=1))
    loss = objective(batch)
    assert loss.metrics["clip_fraction"].total == 0
    learned = batch.targets >= 0
    wanted = -(batch.extra["advantages"] * learned).sum()
    torch.testing.assert_close(loss.terms["policy"].total, wanted)


def test_the_cost_of_a_nat_follows_the_target_golden(parity: Parity) -> None:
    adaptive = AdaptiveKL(0.15, target=6.0, horizon=10_000)
    adaptive.update(7.5, 64)
    parity.golden("ppo", "adaptive KL", [float(adaptive.cost)], [0.150192], within=1e-6)
    for _ in range(100):
        adaptive.update(0.0, 64)
    assert float(adaptive.cost) < 0.15


def test_a_rollout_of_many_horizons_makes_no_cost_negative() -> None:
    adaptive = AdaptiveKL(0.1, target=6.0, horizon=100)
    adaptive.update(0.0, 1000)
    assert float(adaptive.cost) == pytest.approx(0.08)
    adaptive.update(60.0, 1000)
    assert float(adaptive.cost) == pytest.approx(0.096)


def test_the_cost_is_used_before_it_is_adapted() -> None:
    objective = build(PPO(kl=0.1, kl_target=1e-3, kl_horizon=8), tiny.model())
    with torch.no_grad():
        objective.model.head.weight.add_(torch.randn_like(objective.model.head.weight))
    first = objective.prepare(experience(torch.arange(8.0), group=1)).metrics
    second = objective.prepare(experience(torch.arange(8.0), group=1)).metrics
    assert first["kl"] == second["kl"] < 0  # an estimate from few tokens
    assert (first["kl_cost"], second["kl_cost"]) == (0.1, pytest.approx(0.08))


@pytest.mark.parametrize("config", [PPO(kl_target=0.05, kl_horizon=8), GRPO(kl=0.1)])
def test_what_has_no_reward_is_not_near_the_start_either(config: PPO | GRPO) -> None:
    """Completions that are left out do not pull the mean divergence towards zero."""
    objective = build(config, tiny.model())
    with torch.no_grad():
        objective.model.head.weight.add_(torch.randn_like(objective.model.head.weight))
    whole = experience(torch.arange(8.0), group=4)
    some = replace(
        whole,
        batch=without_targets(whole.batch, torch.arange(8) >= 4),
        rewards=torch.tensor([0.0, 1, 2, 3, *[torch.nan] * 4]),
    )
    rows = torch.arange(4)
    alone = replace(
        whole, batch=whole.batch.select(rows), rewards=whole.rewards[:4],
        behaviour=whole.behaviour[:4],
    )  # fmt: skip
    found = objective.prepare(some).metrics["kl"]
    cost = float(objective.adaptive.cost) if isinstance(config, PPO) else 0.0
    again = build(config, objective.model)
    if isinstance(config, PPO):
        again.critic.load_state_dict(objective.critic.state_dict())
    again.reference.load_state_dict(objective.reference.state_dict())
    assert found == pytest.approx(again.prepare(alone).metrics["kl"], rel=1e-5) != 0
    if isinstance(config, PPO):
        assert cost == float(again.adaptive.cost) != config.kl


def test_a_policy_is_read_once_for_a_rollout() -> None:
    objective = build(PPO(), tiny.model())
    read = []
    hidden = objective.model.hidden
    objective.model.hidden = lambda *of: read.append(1) or hidden(*of)
    objective.prepare(experience(torch.arange(8.0), group=1))
    assert len(read) == 1


def test_a_policy_that_went_too_far_only_teaches_its_critic() -> None:
    objective = build(PPO(kl_stop=0.01), tiny.model())
    batch = objective.prepare(experience(torch.arange(8.0), group=1))
    (near,) = objective.prepare_step([batch], 0, Ranks())
    assert near.metrics["policy_stopped"] == 0
    assert torch.equal(near.extra["advantages"], batch.extra["advantages"])
    with torch.no_grad():
        objective.model.head.weight.add_(torch.randn_like(objective.model.head.weight))
    (far,) = objective.prepare_step([batch], 0, Ranks())
    assert far.metrics["policy_stopped"] == 1
    objective(far).mean(far.counts).backward()
    assert all(p.grad is None or not p.grad.any() for p in objective.model.parameters())
    assert objective.critic.head.weight.grad.any()


@pytest.mark.parametrize("shared", [False, True])
def test_values_are_read_where_logits_are(shared: bool) -> None:
    """At token t, before its target is known: a change of the target leaves its value alone."""
    objective = build(PPO(shared=shared), tiny.model())
    batch = rows()
    changed = batch.tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 31
    values = [
        objective._read(replace(batch, tokens=tokens), inference_context(batch))[1]
        for tokens in (batch.tokens, changed)
    ]
    torch.testing.assert_close(values[0][:, :5], values[1][:, :5])
    assert (values[0][:, 5:] != values[1][:, 5:]).any()


def test_a_value_head_on_the_policy_is_a_critic_of_the_same_states() -> None:
    shared, apart = (build(PPO(shared=one), tiny.model()) for one in (True, False))
    assert list(shared.models()) == ["model", "reference"]
    batches = [one.prepare(experience(torch.arange(8.0), group=1)) for one in (shared, apart)]
    for name in ("old", "values", "advantages", "returns"):
        torch.testing.assert_close(batches[0].extra[name], batches[1].extra[name])
    losses = [one(batch) for one, batch in zip((shared, apart), batches, strict=True)]
    for name in ("policy", "value_loss"):
        torch.testing.assert_close(losses[0].terms[name].total, losses[1].terms[name].total)
    losses[0].mean(batches[0].counts).backward()
    assert shared.value_head.weight.grad.any()


def test_whitened_rewards_keep_their_mean_direction() -> None:
    played = experience(torch.arange(8.0), group=1)
    learned = played.learned
    values = torch.randn(learned.shape) + 3.0
    whole = played.whiten(values, learned, centre=False)[learned]
    assert float(whole.std()) == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(whole / whole.mean(), values[learned] / values[learned].mean())


def test_settings_that_contradict_each_other() -> None:
    for settings, message in (
        ({"shared": True, "critic": "x"}, "shared: the policy has the value head"),
        ({"kl": 0.0, "kl_target": 1.0}, "kl_target: a cost of 0 cannot be adapted"),
        ({"dual_clip": 1.1}, "dual_clip: 1.1 is not above"),
    ):
        with pytest.raises(ValueError, match=message):
            PPO(**settings)


def test_models_by_name_and_no_reference_under_adapters() -> None:
    assert list(build(PPO(), tiny.model()).models()) == ["model", "critic", "reference"]
    base = tiny.model()
    LoRA(rank=2).apply(base, 0)
    objective = build(PPO(), base)
    assert list(objective.models()) == ["model", "critic"]
    assert objective.reference is None
    assert objective.critic.head.weight.requires_grad
    assert not objective.critic.embed.weight.requires_grad


def learned(seed: int, shuffled: bool):
    objective = build(PPO(kl=0.0, value_weight=0.5), model(seed), seed)
    asked = rollouts(
        objective, 64, 64, seed=seed, group=1, max_tokens=6, epochs=2, shuffled=shuffled
    )
    optimizer = AdamW(rate=5e-3, weight_decay=0.0).build(objective)
    return fit(objective, asked, 80, optimizer, clip=1.0)


@pytest.mark.slow
def test_reward_rises_the_critic_learns_and_neither_from_shuffled_rewards() -> None:
    steps, control = learned(0, False), learned(0, True)
    reward = [step.metrics["reward"] for step in steps]
    assert reward[0] == control[0].metrics["reward"] < 0.2
    assert sum(reward[-10:]) / 10 > 0.8
    assert sum(step.metrics["reward"] for step in control[-10:]) / 10 < 0.3
    values = [step.metrics["value_loss"] for step in steps]
    assert sum(values[-10:]) < 0.3 * sum(values[:10])
