"""Groups of equal rewards are replaced, and completions without a reward are left out."""

import math
from collections.abc import Sequence

import pytest
import torch
from learning import build, fit
from rolling import Rare, model, on_two_ranks, rollouts

from culm.batch import IGNORED
from culm.config import parse
from culm.objective.grpo import GRPO
from culm.objective.ppo import PPO
from culm.parallel.ranks import Ranks
from culm.rollout.buffer import Rollouts
from culm.rollout.groups import Group
from culm.rollout.trajectory import Trajectory
from culm.run.train_settings import TrainConfig


def played(resample: int, rows: int = 24) -> Rollouts:
    return rollouts(
        build(GRPO(), model(0)), rows, rows, tasks=(Rare(),), group=4, max_tokens=5,
        resample=resample,
    )  # fmt: skip


def mixed(groups: list[Group]) -> int:
    return sum(group.mixed for group in groups)


def test_groups_of_equal_rewards_are_replaced_round_by_round() -> None:
    """Those that taught something stay in their places."""
    plain, every = played(0)._groups(0)
    assert plain == every
    assert 0 < mixed(plain) < len(plain)
    counts = []
    for rounds in (1, 8):
        kept, every = played(rounds)._groups(0)
        assert len(kept) == len(plain)
        for before, after in zip(plain, kept, strict=True):
            if before.mixed:
                assert after.rewards == before.rewards
        counts.append(mixed(kept))
        assert len(every) > len(kept)
    assert mixed(plain) < counts[0] <= counts[1] == len(plain)


def test_metrics_are_of_everything_that_was_played() -> None:
    """The reward of the groups that stay alone would look better than the model is."""
    asked = played(8)
    _, every = asked._groups(0)
    metrics = asked.step(0)[0].metrics
    rewards = [reward for group in every for reward in group.rewards]
    assert metrics["reward"] == pytest.approx(sum(rewards) / len(rewards))
    assert metrics["mixed_reward_groups"] == pytest.approx(mixed(every) / len(every))
    assert metrics["mixed_reward_groups"] < 1


def test_ranks_share_what_each_of_them_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fills its own places; together they hold what one rank would."""
    whole, _ = played(8)._groups(0)

    def play(ranks: Ranks) -> list[Group]:
        return rollouts(
            build(GRPO(), model(0)), 24, 24, ranks=ranks, tasks=(Rare(),), group=4, max_tokens=5,
            resample=8,
        )._groups(0)[0]  # fmt: skip

    together = [group for share in on_two_ranks(monkeypatch, play) for group in share]
    assert [group.rewards for group in together] == [group.rewards for group in whole]
    tokens = [[one.tokens for one in group.trajectories] for group in together]
    assert tokens == [[one.tokens for one in group.trajectories] for group in whole]


def test_dapo_resamples_unless_the_settings_say_otherwise() -> None:
    def resample(objective, **rollout) -> int | None:
        train = {"steps": 1, "objective": objective, "rollout": rollout}
        return parse(TrainConfig, train).rollouts.resample

    assert resample({"kind": "grpo", "variant": "dapo"}) == 4
    assert resample({"kind": "grpo", "variant": "dapo"}, resample=0) == 0
    assert resample("grpo") == 0
    assert resample("grpo", resample=2) == 2


def unsure(trajectories: Sequence[Trajectory]) -> list[float]:
    """Cannot score an answer whose last token is even."""
    return [math.nan if one.tokens[-1] % 2 == 0 else one.episode.score() for one in trajectories]


@pytest.mark.parametrize("config", [GRPO(), GRPO(variant="reinforce++"), PPO()])
def test_what_cannot_be_scored_is_left_out(config) -> None:
    objective = build(config, model(0))
    asked = rollouts(objective, 16, 16, group=4, max_tokens=5)
    asked.scoring._scores["task"] = unsure
    (batch,) = asked.step(0)
    without = (batch.targets == IGNORED).all(1)
    assert 0 < batch.metrics["unscored"] == float(without.float().mean()) < 1
    assert batch.counts["rows"] == float((~without).sum())
    assert math.isfinite(batch.metrics["reward"])
    (step,) = fit(objective, asked)
    assert math.isfinite(step.loss)
    assert all(p.isfinite().all() for p in objective.parameters())
    torch.testing.assert_close(
        batch.extra["advantages"][without], torch.zeros_like(batch.extra["advantages"][without])
    )
