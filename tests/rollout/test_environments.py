"""Dialogues of several turns, and what they earn."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from learning import build, refuse
from rolling import TOKENIZER, LowerCase, model, rollouts

from culm.adapt.heads import with_scalar_head
from culm.adapt.lora import plain
from culm.config import SettingError, parse
from culm.convert import native
from culm.model.transformer import Transformer
from culm.objective.grpo import GRPO
from culm.rollout.buffer import Rollouts
from culm.rollout.environment import TaskEnvironment, Turn
from culm.rollout.reward.length import LengthPenalty
from culm.rollout.reward.model import ModelScore
from culm.rollout.reward.reward import named
from culm.rollout.reward.score import TaskScore
from culm.rollout.sampler import Sampler
from culm.rollout.settings import RolloutConfig
from culm.rollout.trajectory import to_rows
from culm.run.train_settings import TrainConfig


@dataclass
class Echo:
    """Answers each of the first replies, and scores how many there were."""

    index: int
    turns: int = 3
    replies: list[str] = field(default_factory=list)

    @property
    def prompt(self):
        return [{"role": "user", "content": f"q{self.index}"}]

    def step(self, reply: str) -> Turn:
        self.replies.append(reply)
        if len(self.replies) == self.turns:
            return Turn()
        return Turn(({"role": "user", "content": f"more{len(self.replies)}"},))

    def score(self) -> float:
        return len(self.replies) / self.turns


class Echoes:
    started = 0

    def reset(self, index: int, seed: int) -> Echo:
        self.started += 1
        return Echo(index)

    def fingerprint(self, seed: int) -> str:
        return f"echo {seed}"


def speaker(context: int = 96) -> Transformer:
    """It says nothing but lower-case letters, and ends its turns."""
    built = model(0, context=context)
    bias = torch.full((TOKENIZER.vocabulary,), -1e4)
    bias[ord("a") : ord("z") + 1] = 0
    bias[TOKENIZER.specials["<|end|>"]] = 2
    built.head = plain(built.head.weight.detach().clone(), bias)
    built.config = built.config.model_copy(update={"tied": False})
    return built


def sampled(turns: int = 3):
    config = RolloutConfig(max_tokens=3, group=1)
    return Sampler(speaker(), TOKENIZER, config, 0).sample([Echo(n, turns) for n in range(8)], 0)


def test_replies_are_learned_and_what_the_environment_says_is_read() -> None:
    for trajectory in sampled():
        assert len(trajectory.episode.replies) == 3
        text = TOKENIZER.decode(trajectory.tokens, specials=True)
        assert text.count("<|assistant|>") == 3
        learned = [t for t, own in zip(trajectory.tokens, trajectory.learned, strict=True) if own]
        said = TOKENIZER.decode(learned)
        assert said == "".join(trajectory.episode.replies)
        assert "more" not in said
        assert [message["role"] for message in trajectory.messages[::2]] == ["user"] * 3


def test_the_dialogue_is_the_one_that_the_chat_template_writes() -> None:
    """Turn by turn it becomes what encoding the messages at once gives."""
    ends = set()
    for trajectory in sampled():
        whole = TOKENIZER.chat.prompt(trajectory.messages[:-1])
        assert trajectory.tokens[: len(whole)] == whole
        ends.add(trajectory.finish)
    assert ends == {"stop", "length"}


def test_rows_hold_every_turn_with_its_logprobs() -> None:
    trajectories = sampled()
    rows, logprobs = to_rows(trajectories, TOKENIZER.end_of_text)
    assert rows.counts["targets"] == sum(one.sampled for one in trajectories)
    assert ((logprobs != 0) == (rows.targets >= 0)).all()
    for row, one in enumerate(trajectories):
        targets = rows.targets[row]
        own = [t for t, learned in zip(one.tokens, one.learned, strict=True) if learned]
        assert targets[targets >= 0].tolist() == own


def test_a_rollout_plays_an_environment_to_its_end() -> None:
    objective = build(GRPO(), model(0, context=96))
    asked = Rollouts(
        objective, TOKENIZER, [Echoes()], RolloutConfig(group=2, max_tokens=3), refuse,
        rewards=[TaskScore()], batch_size=4, micro_batch_size=4, seed=0,
    )  # fmt: skip
    (batch,) = asked.step(0)
    assert batch.metrics["reward"] == 1
    assert batch.counts["targets"] > 4 * 3


@pytest.mark.parametrize(("model", "given"), [(24, None), (64, 24)])
def test_a_dialogue_ends_where_the_context_does(model: int, given: int | None) -> None:
    config = RolloutConfig(max_tokens=3, group=1)
    sampler = Sampler(speaker(context=model), TOKENIZER, config, 0, context=given)
    (one,) = sampler.sample([Echo(0)], 0)
    assert 1 <= len(one.episode.replies) < 3
    assert len(one.tokens) <= 24
    assert one.finish == "length"


def test_length_penalty_golden() -> None:
    """Soft overlong punishment: 90 of 100 tokens with a margin of 20 cost a half."""
    penalty = LengthPenalty(longest=100, margin=20).penalty
    assert [penalty(n) for n in (10, 80, 90, 100, 200)] == [0, 0, -0.5, -1, -1]
    with pytest.raises(ValueError, match="margin: 30 is more than longest=20"):
        LengthPenalty(longest=20, margin=30)


def test_rewards_are_added_by_weight() -> None:
    rewards = [
        {"kind": "task", "weight": 2.0}, {"kind": "length", "longest": 6, "margin": 6},
    ]  # fmt: skip
    asked = rollouts(build(GRPO(), model(0)), 8, 8, group=2, max_tokens=6, reward=rewards)
    groups, _ = asked._play(range(4))
    for group in groups:
        wanted = [2 * one.episode.score() - one.sampled / 6 for one in group.trajectories]
        assert group.rewards == pytest.approx(wanted)
    metrics = asked.step(0)[0].metrics
    assert metrics["reward"] == pytest.approx(
        2 * metrics["reward_task"] + metrics["reward_length"], abs=1e-6
    )


def test_a_completion_without_an_end_token_is_penalised() -> None:
    groups, _ = rollouts(
        build(GRPO(), model(0)), 8, 8, group=4, max_tokens=3,
        reward=({"kind": "missing_eos", "penalty": 2.0},),
    )._play(range(2))  # fmt: skip
    finished = [one for group in groups for one in group.trajectories]
    given = [reward for group in groups for reward in group.rewards]
    assert given == [0.0 if one.finish == "stop" else -2.0 for one in finished]
    assert -2.0 in given


def test_two_rewards_of_one_name_are_refused() -> None:
    rewards = [{"kind": "length", "longest": n, "margin": n} for n in (3, 6)]
    given = {"steps": 1, "objective": "grpo", "reward": rewards}
    with pytest.raises(SettingError, match="two rewards have the name 'length'; give one a label"):
        named(parse(TrainConfig, given).rewards)
    rewards[0]["label"] = "short"
    assert list(named(parse(TrainConfig, given).rewards)) == ["short", "length"]


def test_a_reward_model_scores_the_last_token_of_each_dialogue(tmp_path: Path) -> None:
    judge = model(1)
    with_scalar_head(judge, 0)
    native.save(judge, TOKENIZER, tmp_path / "judge")
    score = ModelScore(path=str(tmp_path / "judge"), batch_size=3).build(
        lambda setting, path: native.load(path)[0], 0
    )
    config = RolloutConfig(max_tokens=5, group=1)
    episodes = [TaskEnvironment(LowerCase()).reset(n, 0) for n in range(7)]
    trajectories = Sampler(model(0), TOKENIZER, config, 0).sample(episodes, 0)
    alone = [judge.scores(torch.tensor([one.tokens]))[0, -1].item() for one in trajectories]
    assert score(trajectories) == pytest.approx(alone, abs=1e-5)
    with pytest.raises(SettingError, match="has no scalar head"):
        ModelScore(path="x").build(lambda setting, path: model(0), 0)


def test_no_episode_is_started_for_a_fingerprint() -> None:
    """One with a sandbox or a browser would be expensive."""
    echoes = Echoes()
    config = RolloutConfig(max_tokens=3, group=2)
    given = [
        Rollouts(
            build(GRPO(), speaker()), TOKENIZER, [echoes], config, refuse,
            rewards=[TaskScore()], batch_size=4, micro_batch_size=4, seed=seed,
        )
        for seed in (0, 1)
    ]  # fmt: skip
    assert given[0].fingerprint != given[1].fingerprint
    assert echoes.started == 0
