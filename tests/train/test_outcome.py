"""Nothing useless is written, and a run that learned nothing or got worse says so."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from learning import build
from stages import bytes_in, go, weights_in

import culm.run.finish
from culm.config import SettingError
from culm.eval.measure.held_out import HeldOut
from culm.eval.perplexity import predict
from culm.files import read_lines
from culm.objective.next_token import NextToken
from culm.optim.adamw import AdamW
from culm.run.verdict import verdict
from culm.train.checkpoint.folder import Progress, steps_in
from culm.train.checkpoint.store import CheckpointStore
from culm.train.checkpoint.tensors import CheckpointError
from culm.train.guard import first_unusable
from culm.train.idle import idle_reason
from culm.train.judge import TrainingError
from culm.train.update import Update


def said(capsys: pytest.CaptureFixture) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("rate", [1e20, 1e38])
def test_weights_that_the_last_update_ruined(
    rate: float, stage: Callable[..., dict], tmp_path: Path
) -> None:
    settings = {**stage("sft", steps=1), "folder": str(tmp_path / "run")}
    wild = {"kind": "adamw", "rate": rate}
    with pytest.raises(CheckpointError, match=r"step 1: \S+ is not finite.* resumes from step 0"):
        go(settings, optimizer=wild)
    for name in ("model", "results.json", "checkpoints/step-1"):
        assert not (tmp_path / "run" / name).exists()
    assert go(settings).finished


@pytest.mark.parametrize("where", ["weight", "state"])
def test_the_only_checkpoint_is_not_replaced_by_nan(
    where: str, stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**stage("sft"), "folder": str(tmp_path / "run")}
    keep = {"every_steps": 1, "keep": 1}
    go(settings, steps=1, checkpoint=keep)
    before = bytes_in(tmp_path / "run" / "checkpoints"), bytes_in(tmp_path / "run" / "model")
    apply = Update.apply

    @torch.no_grad()
    def ruin(self: Update, number: int) -> dict[str, float]:
        found, optimizer = apply(self, number), self.optimizer
        parameter = optimizer.param_groups[0]["params"][0]
        target = parameter if where == "weight" else optimizer.state[parameter]["exp_avg"]
        target.view(-1)[-1] = float("nan")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Update, "apply", ruin)
        with pytest.raises(CheckpointError, match=r"step 2: .* is not finite"):
            go(settings, steps=3, checkpoint=keep)
    assert before == (
        bytes_in(tmp_path / "run" / "checkpoints"), bytes_in(tmp_path / "run" / "model")
    )  # fmt: skip
    assert go(settings, steps=3, checkpoint=keep).finished


def test_a_checkpoint_of_nan_is_not_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one of an earlier version."""
    trained = build(NextToken(), tiny.model())
    optimizer = AdamW().build(trained)
    with torch.no_grad():
        trained.model.embed.weight[0, 0] = float("inf")
    store = CheckpointStore(tmp_path, trained, optimizer)
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "_refuse_unusable", lambda self, step: None)
        store.save(Progress(1, 0, "x"), {}, lambda path: None)
    with pytest.raises(CheckpointError, match=r"embed\.weight is not finite; delete it to resume"):
        store.load()


def test_the_numbers_that_can_be_computed_with() -> None:
    good = {"a": torch.tensor([1e17, -3.0]), "b": torch.tensor([1, 2]), "c": torch.zeros(0)}
    assert first_unusable(good) is None
    for value in (float("nan"), float("inf"), -float("inf"), 1e19):
        bad = torch.tensor([1.0, value, 2.0])
        assert first_unusable({**good, "d": bad}) == "d"
        assert first_unusable({"d": bad.bfloat16()}) == "d"


def test_a_measure_that_is_not_finite(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**stage("sft"), "folder": str(tmp_path / "run")}
    nan = {"loss": float("nan")}
    monkeypatch.setattr(HeldOut, "measure", lambda self, subject: nan)
    with pytest.raises(TrainingError, match="step 3: loss is nan after the last step, so no model"):
        go(settings)
    assert not (tmp_path / "run" / "model").exists()


def test_a_measure_that_fails_does_not_cost_the_model(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**stage("sft"), "folder": str(tmp_path / "run")}
    count = [0]

    def failing(*arguments: Any, **more: Any) -> Any:
        count[0] += 1
        if count[0] == 2:
            raise ValueError("the tokens ran out")
        return predict(*arguments, **more)

    monkeypatch.setattr("culm.eval.measure.held_out.predict", failing)
    with pytest.raises(RuntimeError, match=r"the model is written, but .*: the tokens ran out"):
        go(settings)
    assert weights_in(tmp_path / "run")
    assert go(settings).finished


@pytest.mark.parametrize("measure", ["samples", "scores"])
def test_what_will_be_measured_is_checked_before_the_first_step(
    measure: str, stage: Callable[..., dict], tmp_path: Path
) -> None:
    settings = {**stage("sft"), "folder": str(tmp_path / "run")}
    file = tmp_path / "questions.jsonl"
    rows = [{"prompt": f"{n} " + "word " * 30, "answer": n} for n in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {
        "samples": {"texts": ["Once.", "once upon a time " * 20]},
        "scores": {"tasks": [{"kind": "prompts", "path": str(file)}]},
    }
    settings["eval"] = {"measures": {measure: given[measure]}}
    with pytest.raises(ValueError, match=rf"eval\.measures\.{measure}: .* leaves no room"):
        go(settings)
    assert not read_lines(tmp_path / "run" / "metrics.jsonl")


def test_rewards_that_are_all_equal(
    stage: Callable[..., dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A model that is never right: its weights stay as they are."""
    file = tmp_path / "questions.jsonl"
    rows = [{"prompt": f"{n}?", "answer": "an answer that is too long"} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {**stage("grpo", batch_size=8), "folder": str(tmp_path / "run")}
    settings["data"] = {"tasks": [{"kind": "prompts", "path": str(file)}]}
    settings["eval"] = {"measures": {}}
    results = go(settings, steps=12).results
    text = said(capsys)
    assert "Step 10: nothing was learned in 10 steps, since all completions of a prompt" in text
    assert "Warning: No weight changed" in text
    assert "Warning: Nothing was learned in 12 of 12 steps, since all completions" in text
    assert len(results["warnings"]) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"grad_norm": 0.1, "margin": 0.3}, None),
        ({"grad_norm": 0.1, "mixed_reward_groups": 0.5}, None),
        ({"grad_norm": 0.0}, "the gradient was zero"),
        ({"grad_norm": 1e-6, "margin": 0.0}, "the margin between"),  # the gradient is rounding
        ({"grad_norm": 0.2, "mixed_reward_groups": 0.0}, "all completions"),  # of a router
    ],
)
def test_why_nothing_was_learned(line: dict[str, float], reason: str | None) -> None:
    found = idle_reason(line)
    assert found is None if reason is None else str(found).startswith(reason)


@pytest.mark.parametrize(("name", "compares"), [("grpo", True), ("ppo", False), ("gkd", False)])
def test_equal_rewards_teach_nothing_only_where_they_are_compared(
    name: str, compares: bool, stage: Callable[..., dict], tmp_path: Path
) -> None:
    """A critic and a teacher need no differences within a group."""
    settings = stage(name, steps=1)
    settings["train"]["rollout"]["group"] = 2
    go({**settings, "folder": str(tmp_path / "run")})
    [line] = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert ("mixed_reward_groups" in line) == compares


def test_answers_that_are_all_equal(stage: Callable[..., dict], tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q{n}", "chosen": f"same {n}", "rejected": f"same {n}"} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {**stage("dpo"), "folder": str(tmp_path / "run")}
    settings["data"] = {"path": str(file), "format": "pair", "held_out": 0}
    with pytest.raises(SettingError, match="nothing to read: 40 pairs have the same chosen"):
        go(settings, steps=3)


def test_a_run_that_learns_has_no_warnings(
    stage: Callable[..., dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("sft", "grpo"):
        results = go({**stage(name), "folder": str(tmp_path / name)}).results
        assert "warnings" not in results
    assert "Warning" not in said(capsys)


def lines(losses: list[float], **more: float) -> list[dict[str, float]]:
    return [{"loss": loss, "grad_norm": 1.0, **more} for loss in losses]


@pytest.mark.parametrize(
    ("losses", "first", "last", "warning"),
    [
        ([3.0] * 5 + [2.0] * 25, 3.1, 2.1, ""),
        ([3.0] * 5 + [2.0] * 25, 2.0, 2.6, "The held-out loss rose from 2.000 to 2.600"),
        ([3.0] * 25 + [9.0] * 5, None, None, "The loss rose from 3.000 to 9.000"),
        ([3.0, 9.0], None, None, ""),  # two steps say nothing
        ([math.nan, *[3.0] * 25, *[9.0] * 5, math.nan], None, None, "The loss rose from 3.000 to"),
    ],
)
def test_a_run_that_got_worse(
    losses: list[float], first: float | None, last: float | None, warning: str
) -> None:
    measured = [{} if loss is None else {"loss": loss} for loss in (first, last)]
    found = verdict(lines(losses), *measured, changed=True, rewarded=False)
    assert [sentence.startswith(warning) for sentence in found] == ([True] if warning else [])


@pytest.mark.parametrize(
    ("start", "end", "fell"),
    [
        (0.6, 0.1, True),
        (0.6, 0.59, False),
        (-1.0, -1.5, True),  # of a reward model
        (-1.0, -1.0, False),
        (-1.0, -0.95, False),
        (0.0, 0.0, False),
        (1e-8, -3e-8, False),  # of whitened rewards, whose mean is zero
    ],
)
def test_a_reward_that_fell(start: float, end: float, fell: bool) -> None:
    rewards = [start] * 20 + [end] * 5
    found = verdict([line for r in rewards for line in lines([0.0], reward=r)], {}, {}, True, True)
    assert (
        found
        == [
            f"The reward fell from {start:.3f} to {end:.3f}; a lower train.optimizer.rate may help."
        ]
        * fell
    )


def test_no_checkpoint_is_half_removed(stage: Callable[..., dict], tmp_path: Path) -> None:
    go({**stage("sft", steps=5, checkpoint={"every_steps": 1}), "folder": str(tmp_path / "run")})
    assert steps_in(tmp_path / "run") == [4, 5]
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {
        "step-4", "step-5",
    }  # fmt: skip


def test_a_finished_run_reads_its_metrics_once(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """And so says once that a line is damaged."""
    settings = {**stage("sft", steps=1), "folder": str(tmp_path / "run")}
    go(settings)
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text("damaged\n" + metrics.read_text())
    read: list[str] = []

    def counted(path: Path) -> list[dict]:
        read.append(path.name)
        return read_lines(path)

    monkeypatch.setattr(culm.run.finish, "read_lines", counted)
    capsys.readouterr()
    go(settings)
    assert read.count("metrics.jsonl") == 1
