"""culm train --seeds and --sweep: a run for each value and seed, in one command."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from culm.cli import app
from culm.config import SettingError
from culm.exits import Refused
from culm.verbs.series import members, split, train_series


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "texts"
    path.mkdir()
    for number in range(12):
        (path / f"{number}.txt").write_text(f"Text {number} is about the number {number}. " * 20)
    return path


@pytest.fixture
def run(text: Path, tmp_path: Path) -> str:
    settings = {
        "folder": str(tmp_path / "runs"), "seed": 3, "device": "cpu",
        "tokenizer": {"kind": "bytes"},
        "model": {
            "vocabulary": 256, "width": 16, "layers": 1, "context": 32,
            "attention": {"kind": "gqa", "heads": 2}, "mlp": {"kind": "swiglu", "hidden": 32},
        },
        "data": {"path": str(text), "held_out": 0.2},
        "train": {
            "steps": 2, "batch_size": 2, "precision": "fp32",
            "optimizer": {"kind": "adamw", "rate": 0.01},
        },
        "eval": {"measures": {"held_out": {"tokens": 200}}},
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_values_and_seeds_are_trained_once_and_compared(run: str, tmp_path: Path) -> None:
    options = ["--seeds", "2", "--sweep", "train.optimizer.rate=0.01,0.1"]
    result = CliRunner().invoke(app, ["train", run, "train.steps=3", *options])
    assert result.exit_code == 0, result.output
    folders = sorted(path for path in (tmp_path / "runs").iterdir())
    assert [path.name for path in folders] == [
        "rate=0.01-seed-3", "rate=0.01-seed-4", "rate=0.1-seed-3", "rate=0.1-seed-4",
    ]  # fmt: skip
    kept = [yaml.safe_load((path / "run.yaml").read_text()) for path in folders]
    assert [one["train"]["optimizer"]["rate"] for one in kept] == [0.01, 0.01, 0.1, 0.1]
    assert [one["seed"] for one in kept] == [3, 4, 3, 4]
    held_out = {
        b"".join(file.read_bytes() for file in sorted((path / "data" / "held_out").iterdir()))
        for path in folders
    }
    assert len(held_out) == 1  # of all seeds
    assert held_out != {b""}
    ends = {json.loads((path / "results.json").read_text())["loss"] for path in folders}
    assert len(ends) == 4
    before = [(path / "metrics.jsonl").read_text() for path in folders]
    again = CliRunner().invoke(app, ["train", run, "train.steps=3", *options])
    assert again.exit_code == 0, again.output
    after = [(path / "metrics.jsonl").read_text() for path in folders]
    assert after == before
    out = str(tmp_path / "compare.svg")
    shown = CliRunner().invoke(app, ["compare", str(tmp_path / "runs"), "--out", out])
    assert shown.exit_code == 0, shown.output
    assert sorted(line.split()[:2] for line in shown.output.splitlines()[1:3]) == [
        ["rate=0.01", "2"], ["rate=0.1", "2"],
    ]  # fmt: skip


def test_commas_in_brackets_are_of_the_value() -> None:
    assert split("a, b") == ["a", "b"]
    assert split("{kind: cosine, floor: 0.1},wsd") == ["{kind: cosine, floor: 0.1}", "wsd"]
    assert split("[1,2],[3]") == ["[1,2]", "[3]"]


@pytest.mark.parametrize("wrong", ["train.steps", "train.steps=", "train.steps=1,,2", "=1"])
def test_an_unclear_sweep_is_refused(run: str, wrong: str) -> None:
    with pytest.raises(SettingError, match="is not NAME=VALUE"):
        list(members(run, [], None, [wrong]))


def test_a_wrong_value_is_refused_before_the_first_run(run: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"train\.steps"):
        train_series(run, [], None, ["train.steps=2,few"])
    assert not (tmp_path / "runs").exists()


def test_several_processes_train_one_run(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Refused, match="on one process"):
        train_series(run, [], 2, [])


def test_folders_of_all_runs_differ(run: str) -> None:
    """Two settings may end in one word, and a value may hold a slash."""
    found = list(
        members(run, ["folder=x"], None, ["train.optimizer.rate=0.1", "data.path=a/b,a/c"])
    )
    assert [folder for folder, _ in found] == ["x/rate=0.1-path=a_b", "x/rate=0.1-path=a_c"]
