"""culm train --seeds and --sweep: a run for each value and seed, in one command."""

import json
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from culm.cli import app
from culm.config import SettingError
from culm.exits import Refused
from culm.train.judge import TrainingError
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


def test_a_run_that_fails_does_not_stop_the_others(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate with which a run diverges is a result of a sweep."""
    trained = []

    def train(name: str, given: list[str]) -> None:
        if "train.optimizer.rate=9" in given:
            raise TrainingError("step 2: the loss is nan")
        trained.append(given)

    monkeypatch.setattr("culm.verbs.series.train_run", train)
    with pytest.raises(TrainingError, match="step 2"):
        train_series(run, [], None, ["train.optimizer.rate=9,0.1"])
    assert len(trained) == 1
    said = "".join(capsys.readouterr())
    assert "rate=9 failed: step 2" in said
    assert "1 of 2 runs failed" in said


@pytest.mark.parametrize("error", [typer.Exit(75), Refused("broken"), OSError("no space left")])
def test_what_all_runs_would_meet_ends_the_series(
    run: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(name: str, given: list[str]) -> None:
        trained.append(given)
        raise error

    trained: list[list[str]] = []
    monkeypatch.setattr("culm.verbs.series.train_run", train)
    with pytest.raises(type(error)):
        train_series(run, [], 2, [])
    assert len(trained) == 1


def test_a_setting_that_is_swept_may_be_needed(run: str, text: Path) -> None:
    values = yaml.safe_load(Path(run).read_text())
    del values["data"]["path"]
    Path(run).write_text(yaml.safe_dump(values))
    assert len(list(members(run, [], None, [f"data.path={text}"]))) == 1


@pytest.mark.parametrize(
    ("seeds", "sweep", "words"),
    [
        (None, ["data.path=a/b,a_b"], "would both be in"),
        (None, ["train.steps=2,2"], "would both be in"),
        (2, ["seed=0,1"], "seed has its values twice"),
        (None, ["train.steps=1", "train.steps=2"], "train.steps has its values twice"),
        (None, ["folder=a,b"], "its own folder"),
    ],
)
def test_runs_that_would_share_a_folder_are_refused(
    run: str, seeds: int | None, sweep: list[str], words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        list(members(run, [], seeds, sweep))


def test_a_comma_in_quotes_is_of_the_value() -> None:
    assert split('"a,b",c') == ['"a,b"', "c"]
    assert split("{a: 'x, ]'},it's,b") == ["{a: 'x, ]'}", "it's", "b"]


@pytest.mark.parametrize("base", ["runs/my run: 2", "runs/a #1"])
def test_any_value_makes_a_plain_folder(run: str, base: str) -> None:
    """Hydra's users met names that a shell or a file system does not take."""
    schedule = "{kind: cosine, warmup: 0.1},wsd"
    given = [f"folder='{base}'"]
    folders = [folder for folder, _ in members(run, given, None, [f"train.schedule={schedule}"])]
    assert folders == [
        f"{base}/schedule=_kind_cosine_warmup_0.1_", f"{base}/schedule=wsd",
    ]  # fmt: skip
    long = [
        folder for folder, _ in members(run, given, None, [f"data.path={'x' * 300},{'x' * 301}"])
    ]
    assert len(set(long)) == 2
    assert all(len(Path(folder).name) <= 200 for folder in long)
