"""Rewards that say nothing or the opposite: no policy gradient reaches the task with them."""

import pytest
from learning import build, fit
from rolling import model, rollouts

from culm.objective.grpo import GRPO, VARIANTS
from culm.objective.objective import ObjectiveConfig
from culm.objective.ppo import PPO
from culm.optim.adamw import AdamW
from culm.rollout.reward.score import TaskScore

METHODS: dict[str, ObjectiveConfig] = {
    "ppo": PPO(kl=0.002),
    **{
        name: GRPO(variant=name, kl=min(GRPO(variant=name).kl, 0.002))  # type: ignore[arg-type]
        for name in VARIANTS
    },
}


def scores(config: ObjectiveConfig, seed: int, weight: float) -> list[float]:
    """The true score of each step, whatever weight the run gives to it."""
    objective = build(config, model(seed))
    reward = TaskScore(weight=weight, clip=1.0)  # a shaped reward has a metric of its own
    epochs = 2 if isinstance(config, PPO) else 1
    asked = rollouts(objective, seed=seed, max_tokens=6, reward=(reward,), epochs=epochs)
    optimizer = AdamW(rate=1e-2, weight_decay=0.0).build(objective)
    steps = fit(objective, asked, 60, optimizer, clip=1.0)
    return [step.metrics["reward_task"] for step in steps]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_only_the_true_reward_is_learned(method: str) -> None:
    """Three seeds; the worst of each counts."""
    for seed in range(3):
        true, zero, flipped = (scores(METHODS[method], seed, weight) for weight in (1, 0, -1))
        assert true[0] == zero[0] == flipped[0] < 0.2  # the same first answers
        assert sum(true[-5:]) / 5 > 0.9, seed
        assert sum(zero[-5:]) / 5 < 0.2, seed
        assert sum(flipped[-5:]) / 5 < 0.05, seed
