"""What learns has the distribution of what sampled: the same ids, at the same temperature."""

from typing import Any

import pytest
import torch
from learning import build, fit
from rolling import TOKENIZER, rollouts

from culm.adapt.lora import LoRA
from culm.model.attention.gqa import GQA
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.experience import Experience
from culm.objective.grpo import GRPO, GRPOObjective
from culm.objective.policy import policy_logprobs
from culm.objective.ppo import PPO
from culm.optim.adamw import AdamW

UNKNOWN = 40  # ids that the tokenizer does not have, and the model likes


def model(**more: Any) -> Transformer:
    config = TransformerConfig(
        vocabulary=TOKENIZER.vocabulary + UNKNOWN, width=32, layers=1, context=32, tied=False,
        attention=(GQA(heads=2, qk_norm="head"),), **more,
    )  # fmt: skip
    built = config.build(0)
    with torch.no_grad():
        built.head.weight *= 8
        built.head.weight[TOKENIZER.vocabulary :] *= 3
    return built


@pytest.mark.parametrize("adapter", [None, LoRA(rank=2, train_also="head")], ids=["full", "head"])
@pytest.mark.parametrize("more", [{}, {"softcap": 5.0}], ids=["plain", "softcap"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("updates", [1, 2])
def test_logprobs_of_sampler_and_trainer(
    updates: int, temperature: float, more: dict, adapter: LoRA | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also where a rollout comes back from a checkpoint."""
    policy = model(**more)
    if adapter is not None:
        adapter.apply(policy, 0)
    objective, seen = build(GRPO(), policy), list[Experience]()
    prepare = GRPOObjective.prepare

    def prepared(self: GRPOObjective, experience: Experience) -> Any:
        seen.append(experience)
        return prepare(self, experience)

    monkeypatch.setattr(GRPOObjective, "prepare", prepared)
    settings = {"group": 4, "max_tokens": 5, "temperature": temperature, "epochs": updates}
    asked = rollouts(objective, rows=8, micro_rows=8, **settings)
    asked.step(0)
    [experience] = seen
    ours = policy_logprobs(policy, experience.batch)
    learned = experience.learned
    torch.testing.assert_close(ours[learned], experience.behaviour[learned], atol=1e-4, rtol=1e-4)
    if updates > 1:
        again = rollouts(objective, rows=8, micro_rows=8, **settings)
        again.restore(1, asked.state(1))
        [batch] = again.step(1)
        assert batch.vocabulary == TOKENIZER.vocabulary
        at = batch.targets >= 0
        torch.testing.assert_close(
            batch.extra["old"][at], policy_logprobs(policy, batch)[at], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("config", [GRPO(), PPO(kl=0.1)], ids=["grpo", "ppo"])
def test_ids_that_are_never_sampled_are_not_learned(config: GRPO | PPO) -> None:
    """They have no gradient, and no part in the divergence from the start."""
    policy = model()
    before = policy.head.weight[TOKENIZER.vocabulary :].clone()
    objective = build(config, policy)
    asked = rollouts(objective, rows=8, micro_rows=8, group=4, max_tokens=5)
    optimizer = AdamW(rate=1e-2, weight_decay=0.0).build(objective)
    steps = fit(objective, asked, 2, optimizer)
    assert steps[0].metrics.get("kl", 0.0) == 0.0
    assert torch.equal(policy.head.weight[TOKENIZER.vocabulary :], before)
