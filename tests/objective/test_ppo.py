"""PPO: advantages by the definition, and a policy and a critic that learn, with a control."""

import pytest
import tiny
import torch
from learning import build, fit
from rolling import model, rollouts
from tiny import experience, rows

from culm.adapt.lora import LoRA
from culm.objective.policy import generalised_advantages, last_learned
from culm.objective.ppo import PPO
from culm.optim.adamw import AdamW


def test_prepare_gives_what_the_definition_says() -> None:
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
    torch.testing.assert_close(batch.extra["returns"], (advantages + values) * learned)
    assert batch.metrics["kl"] == pytest.approx(divergence.sum(1).mean().item())
    assert (last_learned(learned).sum(1) == 1).all()


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


def test_reward_rises_the_critic_learns_and_neither_from_shuffled_rewards() -> None:
    steps, control = learned(0, False), learned(0, True)
    reward = [step.metrics["reward"] for step in steps]
    assert reward[0] == control[0].metrics["reward"] < 0.2
    assert sum(reward[-10:]) / 10 > 0.8
    assert sum(step.metrics["reward"] for step in control[-10:]) / 10 < 0.3
    values = [step.metrics["value_loss"] for step in steps]
    assert sum(values[-10:]) < 0.3 * sum(values[:10])
