"""Rewards that are functions of a user's file: what they get, what they may give, and errors."""

import importlib.util
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from answers import answered
from learning import build, refuse
from rolling import model, rollouts

from culm.config import SettingError, parse
from culm.objective.grpo import GRPO
from culm.objective.policy import group_advantages
from culm.rollout.environment import QuestionEpisode
from culm.rollout.reward.function import FunctionScore
from culm.rollout.reward.potential import Potential
from culm.rollout.trajectory import Trajectory
from culm.run.train_settings import TrainConfig
from culm.task.prompts import Prompts
from culm.task.task import Question


@pytest.fixture
def score(tmp_path: Path) -> Callable[..., list[float]]:
    """Of two answers, by the function `score` in a file of this text."""

    def run(text: str, *answers: Trajectory, **settings: Any) -> list[float]:
        (tmp_path / "my.py").write_text(text)
        reward = FunctionScore(path=str(tmp_path / "my.py"), name="score", **settings)
        given = answers or (answered("one", "a", level=3), answered("two", "bcd", level=5))
        return reward.build(refuse, 0)(list(given))

    return run


def test_a_function_of_one_completion_gets_what_its_parameters_ask_for(score) -> None:
    assert score("def score(completion): return len(completion)") == [1, 3]
    assert score("def score(prompt, completion, **rest): return len(rest)") == [4, 4]
    text = "def score(*, completion, level, answer, more=1): return level + len(answer) + more"
    assert score(text) == [10, 12]
    assert score("def score(completion, completion_ids): return completion_ids[0]") == [97, 98]


def test_a_function_of_lists_is_that_of_trl(score) -> None:
    text = "def score(prompts, completions, level, task, **columns): return [{}]"
    each = "len(c) + n for c, n in zip(completions, level)"
    assert score(text.format(each)) == [4, 8]
    assert score(text.format("None if t else 1. for t in task"))[0] != 0
    plain = "def score(completions, level, **columns): return [n or -1 for n in level]"
    assert score(plain, answered("a", "b", level=2), answered("a", "b")) == [2, -1]


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl")
def test_a_reward_function_of_trl_itself(score) -> None:
    text = "from trl.rewards import think_format_reward as score"
    answers = [answered("q", "<think>\nyes\n</think>\nThe answer."), answered("q", "no")]
    assert score(text, *answers, messages=True) == [1, 0]


def test_the_functions_of_the_page(score, root: Path) -> None:
    page = (root / "docs" / "recipes" / "reinforcement.md").read_text()
    text = page.split("## Rewards")[1].split("```python\n")[1].split("```")[0]
    answers = answered("q", "abcdef"), answered("q", "b" * 13)
    assert score(f"{text}\nscore = brevity", *answers) == [1, 0]
    assert score(f"{text}\nscore = correct", *answers) == [1, 0]


def test_messages_instead_of_text(score) -> None:
    text = "def score(prompt, completion): return {'user': 1}[prompt[0]['role']] + len(completion)"
    assert score(text, messages=True) == [2, 2]


def test_none_and_nan_are_unscored_and_say_so(score) -> None:
    answers = answered("q", "a"), answered("q", "b"), answered("q", "c")
    text = "def score(completion): return {'a': None, 'b': float('nan'), 'c': True}[completion]"
    found = score(text, *answers)
    assert math.isnan(found[0])
    assert math.isnan(found[1])
    assert found[2] == 1
    assert "gave None or nan" in answers[0].problem
    assert answers[2].problem == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\ndef score(completion):\n    return 1 / 0", r"my\.py:3: score raised ZeroDivisionError"),
        ("def score(completion): raise SystemExit(3)", r"my\.py:1: score raised SystemExit: 3"),
        ("def score(completion): return 1 / 0", r"given: prompt='one', completion='a'"),
        ("def score(completion): return 'good'", r"my\.py:1: score gave 'good' \(str\)"),
        ("def score(completion): return [1.0]", r"gave \[1\.0\] \(list\); a reward is a finite"),
        ("def score(completion): return float('inf')", r"gave inf \(float\)"),
        ("def score(completion): return 1j", r"gave 1j \(complex\)"),
        ("def score(completions): return 1", r"gave 1 \(int\); it gets lists, so it must return a"),
        ("def score(completions): return [1]", r"gave 1 rewards for 2 completions"),
        ("def score(completions): return ['1', 2]", r"gave '1' \(str\)"),
        ("def score(completion, solution): return 1", r"needs 'solution', which there is not"),
        ("def score(completion, answers): return 1", r"did you mean 'answer'"),
        ("def score(text): return 1", r"neither a parameter 'completion' nor 'completions'"),
        ("def score(**rest): return 1", r"neither a parameter 'completion' nor 'completions'"),
        ("def score(completion, /): return 1", r"has parameters without names"),
        ("async def score(completion): return 1", r"my\.py:1: score is asynchronous"),
        ("def scored(completion): return 1", r"has no function 'score'; did you mean 'scored'"),
        ("score = 3", r"has no function 'score'; it has none"),
        ("x = 1\ny = 1 / 0", r"my\.py:2: ZeroDivisionError: division by zero"),
        ("x = 1\ndef score(:", r"my\.py:2: SyntaxError"),
        ("import no_such_module", r"my\.py:1: ModuleNotFoundError: No module named"),
    ],
)
def test_bad_functions_end_the_run(text: str, message: str, score) -> None:
    with pytest.raises(SettingError, match=rf"train\.reward.*{message}"):
        score(text)


def test_a_missing_file_and_unusable_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"reward\.path: nowhere\.py: No such file"):
        FunctionScore(path="nowhere.py", name="f").build(refuse, 0)
    with pytest.raises(SettingError, match=r"reward\[0\]\.function\.path|path: this setting"):
        parse(TrainConfig, {"steps": 1, "reward": {"kind": "function", "name": "f"}})


def test_text_that_changed_within_a_second_is_read_anew(score) -> None:
    """No cache of compiled files stands between the digest and what runs."""
    assert score("def score(completion): return 1") == [1, 1]
    assert score("def score(completion): return 2") == [2, 2]


def test_fields_of_a_record_reach_the_function(tmp_path: Path) -> None:
    record = {"question": "Two and two?", "answer": " 4 ", "level": 2, "solution": "2+2=4"}
    (tmp_path / "q.jsonl").write_text(json.dumps(record))
    task = Prompts(path=str(tmp_path / "q.jsonl"), prompt="question")
    (question,) = [*task.asked("train"), *task.asked("test")]
    found = QuestionEpisode(task, question).fields
    assert found == {"answer": "4", "level": 2, "solution": "2+2=4", "task": "prompts"}


def test_a_task_that_a_record_names_is_not_hidden_by_that_of_the_run() -> None:
    task = Prompts(path="x.jsonl", name="sums")
    for fields, wanted in (({}, "sums"), ({"task": "hard"}, "hard")):
        question = Question("1+1=", "2", fields={**fields, "answer": "two"})
        found = QuestionEpisode(task, question).fields
        assert (found["task"], found["answer"]) == (wanted, "2")


POTENTIAL = "def phi(prompt, **fields): return 3.0 * len(prompt) + 0.7"
BONUS = "def bonus(completion): return 3.0 * len(set(completion)) + 0.7"


def test_a_potential_changes_no_group_and_another_bonus_does(tmp_path: Path) -> None:
    """By definition: minus the potential of the prompt, so the advantages of groups stay."""
    (tmp_path / "my.py").write_text(f"{POTENTIAL}\n{BONUS}\n")
    path = str(tmp_path / "my.py")
    answers = [answered(prompt, reply) for prompt in ("q", "longer") for reply in ("ab", "X9", "c")]
    scores = Potential(path=path, name="phi").build(refuse, 0)(answers)
    assert scores == pytest.approx([-3.7] * 3 + [-18.7] * 3)

    def advantages(**reward: Any) -> torch.Tensor:
        rewards = ["task", reward] if reward else ["task"]
        objective = build(GRPO(), model(0))
        asked = rollouts(objective, 32, 32, group=8, max_tokens=5, reward=rewards)
        groups, _ = asked._play(range(4))
        totals = torch.tensor([x for group in groups for x in group.rewards], dtype=torch.float64)
        return group_advantages(totals, 8, "group")

    plain = advantages()
    shaped = advantages(kind="potential", path=path, name="phi")
    torch.testing.assert_close(shaped, plain, atol=1e-6, rtol=0)
    other = advantages(kind="function", path=path, name="bonus")
    assert (other - plain).abs().max() > 0.1


FORKS = """
import os
def score(completions):
    child = os.fork()
    if child == 0:
        {ends}
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])] * len(completions)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ("raise SystemExit(3)", 3),
        ("raise SystemExit('no')", 1),
        ("raise KeyError('x')", 1),
        ("return [1.0]", 0),
        ("os._exit(5)", 5),
    ],
)
def test_a_child_that_a_function_forks_never_becomes_a_second_run(
    ends: str, code: int, score, tmp_path: Path
) -> None:
    parent = os.getpid()
    try:
        found = score(FORKS.format(ends=ends))
    finally:
        if os.getpid() != parent:
            (tmp_path / "lived").touch()
            os._exit(0)
    assert found == [code, code]
    assert not (tmp_path / "lived").exists()
