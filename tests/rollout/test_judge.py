"""A judge behind an endpoint: verdicts, order, ties, and servers that fail in every way."""

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
from answers import answered
from judging import Stub, longer_wins, parts
from learning import build, refuse
from rolling import model, rollouts

from culm import endpoint
from culm.config import SettingError, parse
from culm.objective.grpo import GRPO
from culm.rollout.reward.judge import Judge
from culm.rollout.trajectory import Trajectory
from culm.run.train_settings import TrainConfig


def judged(stub: Stub, given: list[Trajectory], **settings: Any) -> list[float]:
    config = Judge(url=stub.url, model="judge", **{"retries": 0, **settings})
    return config.build(refuse, 0)(given)


def group(*replies: str, number: int = 0) -> list[Trajectory]:
    return [answered("Why?", reply, group=number) for reply in replies]


def test_a_score_is_the_share_of_wins_in_its_group(stub: Stub) -> None:
    """All pairs, each in both orders, at temperature 0; equal answers are not asked about."""
    assert judged(stub, group("a", "bbb", "cc", "dd")) == pytest.approx([0, 1, 0.5, 0.5])
    assert len(stub.bodies) == 2 * 6
    assert {(body["temperature"], body["model"]) for body in stub.bodies} == {(0, "judge")}
    assert stub.keys == [None] * 12
    stub.bodies.clear()
    assert judged(stub, group("a", "a", "bb")) == pytest.approx([0.25, 0.25, 1])
    assert len(stub.bodies) == 2


def test_groups_of_the_same_question_are_not_mixed(stub: Stub) -> None:
    found = judged(stub, [*group("a", "bb"), *group("ccc", "dddd", number=1)])
    assert found == [0, 1, 0, 1]
    seen = {frozenset(parts(body["messages"][0]["content"])) for body in stub.bodies}
    assert seen == {frozenset({"a", "bb"}), frozenset({"ccc", "dddd"})}


@pytest.mark.parametrize("mark", ["A", "B", "tie"])
def test_a_verdict_that_changes_with_the_order_is_a_tie(mark: str, stub: Stub) -> None:
    stub.reply = lambda prompt: f"[[{mark}]]"
    assert judged(stub, group("a", "bb", "ccc")) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("count", [2, 5, 8])
def test_random_pairs_are_keyed_and_include_each_completion(count: int) -> None:
    def chosen(pairs: int | None, seed: int = 0, number: int = 3) -> list[tuple[int, int]]:
        config = Judge(url="http://localhost/v1", model="m", pairs=pairs)
        return config.compared(count, number, seed)

    every = chosen(None)
    assert len(every) == count * (count - 1) // 2
    half = -(-count // 2)
    for pairs in range(1, len(every)):
        found = chosen(pairs)
        assert found == chosen(pairs)
        assert len(set(found)) == pairs
        assert set(found) <= set(every)
        assert pairs < half or {i for pair in found for i in pair} == set(range(count))
    assert sorted(chosen(len(every))) == every
    if count == 8:
        assert chosen(6) != chosen(6, seed=1)
        assert chosen(6) != chosen(6, number=4)


def test_what_is_compared_with_none_is_unscored(stub: Stub) -> None:
    given = group("a", "bb", "ccc", "dddd")
    found = judged(stub, given, pairs=1)
    assert sorted(map(math.isnan, found)) == [False, False, True, True]
    assert {"no pair with it was chosen" in one.problem for one in given} == {True, False}


def test_ratings_of_single_answers(stub: Stub) -> None:
    stub.reply = lambda prompt: f"[[3]] no: [[{len(prompt.split('<answer>')[1].split()[0])}.5]]"
    assert judged(stub, group("a", "bbb"), form="rating", scale=5) == pytest.approx([0.3, 0.7])
    assert len(stub.bodies) == 2
    stub.reply = lambda prompt: "[[11]]"
    given = group("a")
    assert math.isnan(judged(stub, given, form="rating")[0])
    assert "no verdict in the form" in given[0].problem


FAILURES = [
    (lambda prompt: "Both are nice.", "no verdict in the form that it was asked for"),
    (lambda prompt: "", "no verdict in the form"),
    (lambda prompt: b"<html>", "not a chat completion"),
    (lambda prompt: [], "not a chat completion"),
    (lambda prompt: {"choices": []}, "not a chat completion"),
    (lambda prompt: {"choices": [{"message": {"content": None}}]}, "an answer has no text"),
    (lambda prompt: 404, "HTTP 404 Not Found: no such model"),
    (lambda prompt: 401, "HTTP 401"),
    (lambda prompt: 500, "HTTP 500 Internal Server Error, 1 times"),
    (lambda prompt: 307, "HTTP 307"),  # a redirect is not followed
    (lambda prompt: time.sleep(0.5), "gave no answer within 0.2 s, 1 times"),
]


@pytest.mark.parametrize(("reply", "message"), FAILURES, ids=[text for _, text in FAILURES])
def test_failures_leave_out_and_say_why(reply: Callable, message: str, stub: Stub, capsys) -> None:
    stub.reply = reply
    given = group("a", "bb")
    assert all(map(math.isnan, judged(stub, given, timeout=0.2)))
    assert all(message in one.problem for one in given)
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 1 verdicts of the judge are missing" in said


def test_one_failed_comparison_leaves_the_others(stub: Stub) -> None:
    stub.reply = lambda prompt: 400 if "odd" in prompt else longer_wins(prompt)
    given = group("a", "bb", "odd")
    found = judged(stub, given)
    assert found[:2] == [0, 1]
    assert math.isnan(found[2])


def test_attempts_are_repeated_up_to_a_limit(stub: Stub) -> None:
    lost = iter([503, 429, 500])
    stub.reply = lambda prompt: next(lost, None) or longer_wins(prompt)
    assert judged(stub, group("a", "bb"), retries=3, concurrent=1) == [0, 1]
    assert len(stub.bodies) == 5
    stub.bodies.clear()
    stub.reply = lambda prompt: 503
    given = group("a", "bb")
    judged(stub, given, retries=2, concurrent=1)
    assert len(stub.bodies) == 2 * 3
    assert "HTTP 503 Service Unavailable, 3 times" in given[0].problem


def test_a_server_that_is_gone_is_given_up_soon(stub: Stub) -> None:
    stub.reply = lambda prompt: 500
    given = group(*("a" * n for n in range(1, 13)))
    judged(stub, given, concurrent=2)
    assert all("HTTP 500" in one.problem for one in given)
    assert len(stub.bodies) <= 6  # of 132
    stub.reply = longer_wins
    assert judged(stub, group("a", "bb")) == [0, 1]


def test_a_server_that_answers_byte_by_byte_is_no_exception() -> None:
    class Slow:
        def read1(self, size: int) -> bytes:
            time.sleep(0.02)
            return b" "

    with pytest.raises(TimeoutError):
        endpoint._read(Slow(), time.monotonic() + 0.1)


def test_nobody_listens(stub: Stub) -> None:
    stub.url = "http://127.0.0.1:9/v1"
    given = group("a", "bb")
    assert all(map(math.isnan, judged(stub, given)))
    assert "http://127.0.0.1:9/v1 cannot be reached" in given[0].problem


def test_the_key_comes_from_the_environment_and_is_written_nowhere(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingError, match=r"api_key: the environment variable KEY is not set"):
        judged(stub, group("a", "bb"), api_key="KEY")
    monkeypatch.setenv("KEY", "sk-secret\n")
    config = Judge(url=stub.url, model="m", api_key="KEY")
    assert config.build(refuse, 0)(group("a", "bb")) == [0, 1]
    monkeypatch.setenv("KEY", "sk-\nsecret")
    with pytest.raises(SettingError, match="KEY holds no key") as found:
        judged(stub, group("a", "bb"), api_key="KEY")
    assert "secret" not in str(found.value)
    assert set(stub.keys) == {"Bearer sk-secret"}
    assert "sk-secret" not in f"{config!r} {config.model_dump_json()}"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"url": "http://me:secret@host/v1"}, r"judge\.url: this is not http"),
        ({"url": "http://host/v1?key=secret"}, r"judge\.url: this is not http"),
        ({"url": "host:8000"}, r"judge\.url: this is not http"),
        ({"api_key": "sk-secret"}, r"judge\.api_key: give the name of an environment variable"),
        ({"form": "rating", "pairs": 2}, r"judge\.pairs: a rating compares no pairs"),
        ({"model": ""}, r"model"),
    ],
)
def test_unusable_settings(wrong: dict, message: str) -> None:
    settings = {"kind": "judge", "url": "http://h/v1", "model": "m", **wrong}
    message = message.replace("judge", r"reward\S*")
    with pytest.raises(SettingError, match=message) as found:
        parse(TrainConfig, {"steps": 1, "reward": [settings]})
    assert "secret" not in str(found.value)


def test_a_group_of_one_has_no_pairs() -> None:
    judge = {"kind": "judge", "url": "http://h/v1", "model": "m"}
    train = {"steps": 1, "objective": "ppo", "rollout": {"group": 1}, "reward": judge}
    with pytest.raises(SettingError, match=r"rollout\.group: judge compares at least 2"):
        parse(TrainConfig, train)
    train["reward"] = {**judge, "form": "rating"}
    assert parse(TrainConfig, train).rollouts.group == 1


def test_where_it_is_asked_is_no_part_of_what_a_run_depends_on() -> None:
    one, other, third = (
        Judge(url=url, model=name, timeout=seconds)
        for url, name, seconds in (("http://a", "m", 1), ("http://b", "m", 2), ("http://a", "n", 1))
    )
    assert repr(one) == repr(other) != repr(third)


def test_a_run_ends_where_nothing_can_be_scored(stub: Stub) -> None:
    stub.reply = lambda prompt: 500
    reward = Judge(url=stub.url, model="m", retries=0)
    asked = rollouts(build(GRPO(), model(0)), 8, 8, group=4, max_tokens=5, reward=(reward,))
    with pytest.raises(SettingError, match=r"none of the 8 completions .* scored; .* HTTP 500"):
        asked.step(0)


def test_a_judge_in_a_rollout(stub: Stub) -> None:
    """The same verdicts give the same step; a share that fails is left out and counted."""
    reward = Judge(url=stub.url, model="m", retries=0)
    config = {"group": 4, "max_tokens": 5, "reward": (reward,)}
    asked = [rollouts(build(GRPO(), model(0)), 16, 16, **config) for _ in range(2)]
    one, two = (each.step(0)[0].metrics for each in asked)
    assert one == two
    assert one["reward"] == pytest.approx(0.5)  # by definition, in each group
    assert one["unscored"] == 0
    lost = iter([400] * 12)  # a group and more
    stub.reply = lambda prompt: next(lost, None) or longer_wins(prompt)
    (batch,) = asked[0].step(1)
    assert 0 < batch.metrics["unscored"] < 1
