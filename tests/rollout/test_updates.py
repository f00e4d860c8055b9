"""Several updates of one rollout: prepared once, split into batches, continued exactly."""

import pytest
import torch
from learning import build, fit
from rolling import model, rollouts

from culm.objective.grpo import GRPO
from culm.objective.ppo import PPO
from culm.optim.adamw import AdamW
from culm.parallel.ranks import Ranks
from culm.rollout.buffer import Rollouts

SETTINGS = {"group": 2, "max_tokens": 5, "batches": 2, "epochs": 2}


def asked(objective, rows: int = 8, ranks: Ranks = Ranks(), **more) -> Rollouts:
    return rollouts(objective, rows, 4, ranks=ranks, **{**SETTINGS, **more})


def tokens(batches) -> list[list[int]]:
    return sorted(row for batch in batches for row in batch.tokens[:, :20].tolist())


def total(batches, column: str) -> float:
    return sum(float(batch.extra[column].double().sum()) for batch in batches)


def test_batches_share_no_row_and_epochs_repeat_them() -> None:
    steps = [asked(build(GRPO(), model(0)))]
    steps = [steps[0].step(number) for number in range(4)]
    prompts = [tokens(step) for step in steps]
    assert prompts[0] == prompts[2]
    assert prompts[1] == prompts[3]
    assert prompts[0] != prompts[1]
    assert sum(batch.counts["rows"] for batch in steps[0]) == 8


def test_the_rollout_is_sampled_once_with_the_weights_of_its_first_step() -> None:
    objective = build(GRPO(), model(0))
    held = asked(objective)
    first = tokens(held.step(0))
    with torch.no_grad():
        objective.model.head.weight.add_(torch.randn_like(objective.model.head.weight))
    assert tokens(held.step(2)) == first
    fresh = asked(objective)
    assert tokens(fresh.step(0)) != first  # these weights say something else
    with pytest.raises(RuntimeError, match="rollout 0 was sampled with weights that are gone"):
        asked(objective).step(2)


def test_ratios_are_one_at_the_first_update_and_move_afterwards() -> None:
    objective = build(GRPO(clip_low=0.001, clip_high=0.001), model(0))
    optimizer = AdamW(rate=0.01, weight_decay=0.0).build(objective)
    steps = fit(objective, asked(objective, 32, batches=1, epochs=3), 4, optimizer, clip=1.0)
    clipped = [step.metrics["clip_fraction"] for step in steps]
    assert clipped[0] == clipped[3] == 0  # the first update of each rollout
    assert clipped[1] > 0


@pytest.mark.parametrize("config", [GRPO(), PPO()], ids=["grpo", "ppo"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_state_in_the_middle_of_a_rollout_continues_on_any_number_of_ranks(config, ranks) -> None:
    """The state that one rank stores gives the same rows to one or two ranks."""
    objective = build(config, model(0))
    held = asked(objective)
    held.step(0)
    state = held.state(1)
    wanted = [held.step(number) for number in (1, 2, 3)]
    with torch.no_grad():
        objective.model.head.weight.zero_()  # nothing is sampled or computed again
    shares = [asked(objective, ranks=Ranks(rank, ranks)) for rank in range(ranks)]
    for share in shares:
        share.restore(1, state)
    for number, whole in zip((1, 2, 3), wanted, strict=True):
        parts = [batch for share in shares for batch in share.step(number)]
        assert tokens(parts) == tokens(whole)
        for name in whole[0].extra:
            sums = [
                sum(float(b.extra[name].double().sum()) for b in part) for part in (parts, whole)
            ]
            assert sums[0] == pytest.approx(sums[1], abs=1e-9), name
        assert parts[0].metrics == pytest.approx(whole[0].metrics)
    assert held.state(4) == {}


def test_the_sampler_and_the_training_forward_agree() -> None:
    """Behaviour log-probabilities of the engine are those that the objective computes."""
    seen = []

    def prepare(experience):
        new = experience.compute(
            lambda part: objective.model.logprobs(
                part.tokens, part.targets, temperature=part.temperature
            )
        )
        seen.append((experience.behaviour, new))
        return type(objective).prepare(objective, experience)

    objective = build(GRPO(), model(0))
    objective.prepare = prepare
    asked(objective, temperature=0.7).step(0)
    behaviour, new = seen[0]
    assert behaviour.abs().max() > 0.1
    torch.testing.assert_close(behaviour, new, atol=1e-4, rtol=1e-4)
