"""Questions are asked by their pass rates: the same on every rank, and after a resume."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from learning import build
from rolling import model, on_two_ranks, rollouts
from stages import untimed

from culm.compose import read_yaml
from culm.config import SettingError, parse
from culm.files import read_lines
from culm.objective.grpo import GRPO
from culm.parallel.ranks import Ranks
from culm.rollout.buffer import Rollouts
from culm.rollout.environment import Fitting, TaskEnvironment
from culm.rollout.groups import Group
from culm.rollout.pass_rate import TRIES, PassRange, PassRates, question_key
from culm.rollout.trajectory import Trajectory
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.run.train_settings import TrainConfig
from culm.task.prompts import Prompts
from culm.task.task import Question
from culm.verbs.plan import show_plan

QUESTIONS = 24
Stage = Callable[..., dict]


class Letters(Prompts):
    """Questions of a file; the share of lower-case letters is the score, of every third one."""

    def score(self, question: Question, reply: str) -> float:
        if int(question.prompt) % 3:
            return 0.0
        return sum("a" <= character <= "z" for character in reply[:6]) / 6


@pytest.fixture
def task(tmp_path: Path) -> Letters:
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": str(n), "answer": "abcdef"}) for n in range(QUESTIONS)]
    path.write_text("\n".join(lines))
    return Letters(path=str(path))


def fitting(task: Letters) -> Fitting:
    return Fitting(TaskEnvironment(task), lambda prompt: True)


def group_of(task: Letters, number: int, scores: list[float]) -> Group:
    episode = TaskEnvironment(task).reset(number, 1)
    return Group([Trajectory(episode, group=number) for _ in scores], scores, {"task": scores})


def played(task: Letters, ranks: Ranks = Ranks(), **config) -> Rollouts:
    return rollouts(
        build(GRPO(), model(0)), 24, 24, tasks=(task,), ranks=ranks,
        **{"group": 4, "max_tokens": 5, "curriculum": PassRange(low=0.01, high=0.99), **config},
    )  # fmt: skip


def test_the_rate_is_a_moving_average_in_the_order_of_groups(task: Letters) -> None:
    rates = PassRates(PassRange(newest=0.25), 0)
    count = len(task.asked("train"))  # so many groups later, each question comes again
    places = [0, *(n for n in range(count, 2 * count))]
    key = question_key(TaskEnvironment(task).reset(0, 1))
    again = next(n for n in places[1:] if question_key(TaskEnvironment(task).reset(n, 1)) == key)
    nan = float("nan")
    later, first = group_of(task, again, [1, 0, nan]), group_of(task, 0, [1, 1, 1])
    rates.update([later, first], Ranks())
    assert rates.rates == {key: 1 + 0.25 * (0.5 - 1)}
    rates.update([group_of(task, 1, [nan, nan])], Ranks())
    assert len(rates.rates) == 1


def test_what_is_outside_of_the_range_is_passed_over_and_rechecked(task: Letters) -> None:
    rates, questions = PassRates(PassRange(low=0.2, high=0.8, recheck=0.1), 0), fitting(task)
    for number in range(len(task.asked("train"))):
        episode = TaskEnvironment(task).reset(number, 1)
        rates.rates[question_key(episode)] = (0.0, 0.5, 1.0, 0.2)[number % 4]
    asked = Counter()
    for number in range(2000):
        place, passed = rates.place(questions, number, 1)
        rate = rates.rates[question_key(questions.reset(place, 1)[0])]
        asked[rate] += 1
        assert passed or place == number
    inside, outside = asked[0.5] + asked[0.2], asked[0.0] + asked[1.0]
    assert outside / inside == pytest.approx(0.1, abs=0.03)
    new = PassRates(PassRange(), 0)
    assert [new.place(questions, number, 1) for number in range(9)] == [(n, 0) for n in range(9)]


def test_where_all_are_outside_the_first_is_asked(task: Letters) -> None:
    rates = PassRates(PassRange(recheck=1e-9), 0)
    for number in range(len(task.asked("train"))):
        rates.rates[question_key(TaskEnvironment(task).reset(number, 1))] = 0.0
    assert rates.place(fitting(task), 5, 1) == (5, TRIES)


def test_questions_that_are_never_answered_are_asked_less(task: Letters) -> None:
    with_range, without = played(task), played(task, curriculum=None)
    shares = []
    for asked in (with_range, without):
        metrics = [asked.step(number)[0].metrics for number in range(12)]
        shares.append(sum(one["mixed_reward_groups"] for one in metrics[6:]) / 6)
        assert ("filtered_prompts" in metrics[0]) == (asked is with_range)
    assert shares[0] > 1.5 * shares[1]
    assert with_range.step(12)[0].metrics["filtered_prompts"] > 0.2


def test_two_ranks_ask_what_one_asks(task: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(ranks: Ranks) -> tuple[dict[int, float], list[list[int]]]:
        asked = played(task, ranks, resample=2)
        rows = [
            row
            for number in range(5)
            for part in asked.step(number)
            for row in part.tokens.tolist()
        ]
        return asked.rates.rates, [[t for t in row if t] for row in rows]

    whole = play(Ranks())
    shares = on_two_ranks(monkeypatch, play)
    assert shares[0][0] == shares[1][0] == whole[0]
    assert list(shares[0][0]) == list(whole[0])
    assert sorted(shares[0][1] + shares[1][1]) == sorted(whole[1])


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_rates_are_in_the_state(task: Letters, epochs: int) -> None:
    """Also in the middle of a rollout, with its rows."""
    one, two = played(task, epochs=epochs), played(task, epochs=epochs)
    for number in range(5):
        one.step(number)
    state = one.state(5)
    assert ("tokens" in state) == (epochs > 1)
    two.restore(5, state)
    assert two.rates.rates == one.rates.rates
    for number in range(5, 9):
        for a, b in zip(one.step(number), two.step(number), strict=True):
            assert torch.equal(a.tokens, b.tokens)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_resumes_exactly(stage: Stage, tmp_path: Path, epochs: int, capsys) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"How many a in {'ab' * n}?", "answer": str(n)} for n in range(1, 12)]
    path.write_text("\n".join(map(json.dumps, lines)))

    def run(folder: str, steps: int) -> list[dict]:
        settings = stage("grpo", steps=steps, checkpoint={"every_steps": 2})
        settings["data"] = {"tasks": [{"kind": "prompts", "path": str(path)}]}
        settings["eval"]["measures"] = {}
        settings["train"]["batch_size"] = 8
        settings["train"]["rollout"] |= {"curriculum": {"low": 0.1, "high": 0.9}, "epochs": epochs}
        train(parse(RunConfig, {**settings, "folder": str(tmp_path / folder)}))
        read = read_lines(tmp_path / folder / "metrics.jsonl")
        return [untimed(line) for line in read]

    whole = run("one", 7)
    config = parse(RunConfig, read_yaml(tmp_path / "one" / "run.yaml"))
    show_plan(config.model_copy(update={"folder": str(tmp_path / "new")}), {})
    shown = " ".join(capsys.readouterr().out.split())
    assert "pass rates from 0.1 to 0.9, new questions, and 10% of others" in shown
    run("two", 3)
    assert run("two", 7) == whole
    assert "filtered_prompts" in whole[-1]


def test_what_cannot_be_is_refused(stage: Stage, tmp_path: Path) -> None:
    settings = stage("grpo")
    settings["train"]["rollout"]["curriculum"] = {}
    with pytest.raises(SettingError, match=r"train\.rollout\.curriculum: count makes up its quest"):
        parse(RunConfig, {**settings, "folder": str(tmp_path)})
    others = {"kind": "dialogues", "path": "chats.jsonl"}
    settings["data"] = {"tasks": [others]}
    assert parse(RunConfig, {**settings, "folder": str(tmp_path)}).train.rollouts.curriculum
    for rollout, message in (
        (
            {"curriculum": {"low": 0.9, "high": 0.1}},
            r"curriculum\.low: 0\.9 is not below high=0\.1",
        ),
        ({"curriculum": {"reward": "judge"}}, r"curriculum\.reward: there is no reward 'judge'"),
    ):
        given = {"steps": 1, "objective": "grpo", "rollout": rollout}
        with pytest.raises(SettingError, match=message):
            parse(TrainConfig, given)
