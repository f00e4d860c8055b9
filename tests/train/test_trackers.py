"""Weights & Biases in its offline mode, and MLflow in a folder."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from culm.config import SettingError, parse
from culm.files import read_lines
from culm.run.settings import read_run
from culm.run.train import train
from culm.train.trackers import mlflow as mlflow_tracker
from culm.train.trackers import wandb as wandb_tracker
from culm.train.trackers.mlflow import MLflow
from culm.train.trackers.tracker import run_id
from culm.train.trackers.wandb import WandB

SAMPLES = (
    "eval.every_steps=1",
    "eval.measures.mine={kind: samples, texts: ['the quick'], max_tokens: 4, "
    "temperatures: [0.5, 1], while_training: true}",
)


def test_mlflow_gets_what_the_files_get(
    run_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database needs more than its client
    uri = f"file:{tmp_path}/mlflow"
    file, track = run_file("sft", steps=4), f"train.trackers={{kind: mlflow, uri: '{uri}'}}"
    train(read_run(str(file), [track, *SAMPLES, "train.steps=2"])[0])
    config, _ = read_run(str(file), [track, *SAMPLES])
    train(config)  # resumed: the same run there
    folder = Path(config.folder)
    client = mlflow.MlflowClient(uri)
    [run] = client.search_runs([client.get_experiment_by_name("culm").experiment_id])
    assert run.data.tags[mlflow_tracker.TAG] == run_id(folder)
    history = client.get_metric_history(run.info.run_id, "train/loss")
    lines = read_lines(folder / "metrics.jsonl")
    assert {m.step: m.value for m in history} == {line["step"]: line["loss"] for line in lines}
    assert run.data.params["train.batch_size"] == str(config.train.batch_size)
    last = read_lines(folder / "eval.jsonl")[-1]
    files = [file.path for file in client.list_artifacts(run.info.run_id, "eval/mine.samples")]
    assert f"eval/mine.samples/step-{last['step']}.json" in files
    [content] = (tmp_path / "mlflow").rglob(f"step-{last['step']}.json")
    assert json.loads(content.read_text()) == last["mine.samples"]


def test_tensorboard_shows_the_samples_of_a_run(run_file: Callable[..., Path]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    file = run_file("sft", steps=2)
    config, _ = read_run(str(file), ["train.trackers=tensorboard", *SAMPLES])
    train(config)
    events = accumulator.EventAccumulator(f"{config.folder}/tensorboard")
    events.Reload()
    lines = read_lines(Path(config.folder) / "eval.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2]
    for number in (0, 1):
        texts = events.Tensors(f"eval/mine.samples/{number}/text_summary")
        assert [event.step for event in texts] == [0, 1, 2]
        for event, line in zip(texts, lines, strict=True):
            [shown] = event.tensor_proto.string_val
            sample = line["mine.samples"][number]
            assert sample["temperature"] == (0.5, 1)[number]
            head, _, block = shown.decode().partition("\n\n")
            assert head == f"Temperature {sample['temperature']:g}"
            wrote = sample["prompt"] + sample["text"]
            assert [line[4:] for line in block.splitlines()] == wrote.splitlines()
    assert len(events.Scalars("eval/loss")) == 3


def test_runs_in_folders_of_one_name_are_not_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two people have /workspace/runs/sft, each in a container; one of them resumes."""
    asked: list[str] = []
    package = SimpleNamespace(
        init=lambda **given: asked.append(given["id"]), Settings=lambda **given: None
    )
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr(WandB, "check", lambda self: None)
    folder = tmp_path / "runs" / "sft"
    for fresh in (True, False, True):
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        WandB().open(folder, {}, 0)
    assert asked[0] == asked[1] != asked[2]


def test_wandb_works_without_a_network(run_file: Callable[..., Path]) -> None:
    """In a process of its own: its file is complete once that has ended."""
    pytest.importorskip("wandb")
    file = run_file("sft", steps=2)
    settings = ["train.trackers={kind: wandb, mode: offline}", *SAMPLES, f"folder={file}-wandb"]
    script = "import sys; from culm.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "train", str(file), *settings],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    [found] = Path(f"{file}-wandb").glob("wandb/offline-run-*/run-*.wandb")
    content = found.read_bytes()
    assert b"train/loss" in content
    assert b"batch_size" in content
    tables = [json.loads(path.read_text()) for path in found.parent.rglob("*.table.json")]
    lines = read_lines(Path(f"{file}-wandb") / "eval.jsonl")
    assert tables
    assert sorted(table["data"] for table in tables) == sorted(
        [[one["prompt"], one["temperature"], one["text"]] for one in line["mine.samples"]]
        for line in lines
    )


@pytest.mark.parametrize(
    ("tracker", "module", "extra"),
    [(WandB(), wandb_tracker, "wandb"), (MLflow(), mlflow_tracker, "mlflow")],
)
def test_an_absent_package_names_its_extra(
    tracker: WandB | MLflow, module: object, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"culm\[{extra}\]"):
        tracker.check()


def test_a_mode_that_is_not_known_is_refused() -> None:
    with pytest.raises(SettingError, match="mode"):
        parse(WandB, {"mode": "sometimes"})
