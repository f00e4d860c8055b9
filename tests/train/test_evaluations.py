"""Evaluations while training: after the checkpoint of their step, and never at the run's cost."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_resume import assert_equal

from culm.config import parse
from culm.eval.measure.held_out import HeldOut
from culm.files import read_lines
from culm.run.settings import RunConfig
from culm.run.train import Result, train
from culm.train.checkpoint.folder import steps_in

EVERY = {"every_steps": 2}


def run(values: dict[str, Any], folder: Path) -> Result:
    return train(parse(RunConfig, {**values, "folder": str(folder)}))


def measured(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / "eval.jsonl")


def settings_of(stage: Callable[..., dict]) -> dict[str, Any]:
    settings = stage("sft", steps=6, checkpoint=EVERY)
    settings["eval"]["every_steps"] = 2
    return settings


def test_a_run_goes_on_where_an_evaluation_fails(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(stage)
    run(settings, tmp_path / "one")
    measure, calls = HeldOut.measure, []

    def sometimes(self: HeldOut, subject: Any) -> dict[str, Any]:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("no room")
        return measure(self, subject)

    monkeypatch.setattr(HeldOut, "measure", sometimes)
    assert run(settings, tmp_path / "two").finished
    one, two = measured(tmp_path / "one"), measured(tmp_path / "two")
    assert two[1] == {"step": 2, "failed": {"held_out": "MemoryError: no room"}}
    assert [line for line in two if line["step"] != 2] == [one[0], *one[2:]]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_step_is_saved_before_it_is_evaluated_and_evaluated_once_more_after_a_kill(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(stage)
    run(settings, tmp_path / "one")
    child = os.fork()
    if child == 0:
        measure, calls = HeldOut.measure, []

        def die(self: HeldOut, subject: Any) -> dict[str, Any]:
            calls.append(1)
            if len(calls) == 3:  # at step 4
                os.kill(os.getpid(), signal.SIGKILL)
            return measure(self, subject)

        monkeypatch.setattr(HeldOut, "measure", die)
        run(settings, tmp_path / "two")
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert steps_in(tmp_path / "two") == [2, 4]
    assert [line["step"] for line in measured(tmp_path / "two")] == [0, 2]
    assert run(settings, tmp_path / "two").finished
    assert measured(tmp_path / "two") == measured(tmp_path / "one")
    assert_equal(tmp_path / "one", tmp_path / "two")


def test_programs_run_while_a_model_is_trained(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"text": "One.", "code": "x = 1", "test_list": ["assert x == 1"]}
    (tmp_path / "code.jsonl").write_text(json.dumps(record) + "\n")
    task = {"kind": "code", "path": str(tmp_path / "code.jsonl"), "plain": False}
    dialogue = {"prompt": "Say x."}
    (tmp_path / "say.jsonl").write_text(json.dumps(dialogue) + "\n")
    (tmp_path / "reward.py").write_text("def score(completion):\n    return 1.0\n")
    reward = {"kind": "function", "path": str(tmp_path / "reward.py"), "name": "score"}
    say = {"kind": "dialogues", "path": str(tmp_path / "say.jsonl")}
    settings = stage("pretrain", steps=3, context=256)
    settings["model"]["context"] = 256
    settings["eval"] = {"every_steps": 2, "measures": {
        "scores": {"tasks": [task], "max_tokens": 4, "samples": 2, "temperature": 1.0},
        "chat": {"tasks": [say], "max_tokens": 4, "reward": reward},
    }}  # fmt: skip
    assert run(settings, tmp_path / "run").finished
    lines = measured(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 2, 3]
    assert all(line["scores"]["code"]["items"] == 1 for line in lines)
    assert all(line["rewards"]["all"]["value"] == 1 for line in lines)
