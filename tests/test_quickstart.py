"""The whole way, from text to a packed chat model, at a size that takes seconds."""

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import culm
from culm.config import SettingError
from culm.files import sha256
from culm.quickstart import quickstart
from culm.quickstart.quickstart import Quickstart
from culm.quickstart.stages import Stages, keep
from culm.run.settings import RunConfig
from culm.train.events import Event, Stepped
from culm.train.listeners import MetricsFile

TEXT = "def add(a, b):\n    return a + b\n\nclass Point:\n    x, y = 0, 0\n\n"
FEW: dict[str, dict[str, Any]] = {
    "scores": {"questions": 2},
    "held_out": {"tokens": 300},
    "samples": {"texts": ("def ",)},
}


class Tiny(Quickstart):
    """The same stages and settings over a model, batches and questions that are small."""

    def config(self, name: str, steps: int | None = None) -> RunConfig:
        config = super().config(name, steps)
        few = {"batch_size": 8, "micro_batch_size": 8, "precision": "fp32"}
        measures = {
            kind: measure.model_copy(update=FEW[kind])
            for kind, measure in config.eval.measures.items()
        }
        changed: dict[str, Any] = {
            "train": config.train.model_copy(update=few),
            "eval": config.eval.model_copy(update={"measures": measures}),
            "data": config.data.model_copy(update={"questions": 200, "held_out": 0.2}),
        }
        if config.model is not None:
            # More rows than so few words give tokens.
            small = {"vocabulary": 320, "width": 32, "layers": 1, "context": 64}
            changed["model"] = config.model.model_copy(update=small)
        if name in ("sft", "rl", "control"):
            changed["data"] = config.data.model_copy(update={"questions": 200})
        return config.model_copy(update=changed)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(quickstart, "PACK_QUESTIONS", 2)
    monkeypatch.setattr(quickstart, "LEAST_QUESTIONS", 2)
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text(TEXT.replace("add", f"add_{number}") * 8)
    return [str(folder)]


class Stop(Exception):
    """Somebody pulls the plug."""


def test_all_stages_with_an_interruption(
    text: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()

    def fail(self: Quickstart) -> dict[str, Any]:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Tiny, "evaluate", fail)
        with pytest.raises(Stop):
            Tiny(folder, text, 0.01, "cpu", 3).run()
    before = Stages(folder).read()
    assert list(before) == ["corpus", "tokenizer", "pretrain", "sft", "rl", "control"]
    assert "evaluate" in Stages(folder).seconds()

    Tiny(folder, text, 0.01, "cpu", 3).run()
    after = Stages(folder).read()
    assert {name: after[name] for name in before} == before  # kept, not done again

    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["seconds"]) == list(summary["peak_bytes"]) == [*before, "evaluate", "pack"]
    assert all(seconds >= 0 for seconds in summary["seconds"].values())
    assert all(size > 0 for size in summary["peak_bytes"].values())
    assert summary["bits_per_byte"].keys() == {"before", "after"}
    assert summary["bits_per_byte"]["after"] < summary["bits_per_byte"]["before"]
    for model in ("base", "sft", "rl"):
        score = summary["exact_match"][model]["addition"]
        assert score["low"] <= score["value"] <= score["high"]
        assert score["items"] == 2
    for gain in summary["gains"].values():
        assert gain["low"] <= gain["value"] <= gain["high"]
    assert after["control"]["steps"] == after["rl"]["steps"]
    assert summary["reward"].keys() == {"first", "last", "control_first", "control_last"}
    packs = summary["packs"]
    assert packs["int8"]["bytes"] < packs["chat"]["bytes"]
    assert packs["hf"]["bits_per_byte"] == pytest.approx(packs["chat"]["bits_per_byte"], abs=1e-3)

    report = (folder / "report.md").read_text()
    for plot in ("loss", "bits_per_byte", "reward", "exact_match", "attention"):
        assert f"plots/{plot}.png" in report
        assert (folder / "plots" / f"{plot}.png").stat().st_size > 1000
    model = culm.load(folder / "chat")
    assert isinstance(model.chat("What is 17 + 25?", max_tokens=4), str)

    # What was made and is gone, or damaged, is made again; what others put there stays.
    weights = {stage: digest(folder / stage) for stage in ("rl", "chat")}
    shutil.rmtree(folder / "rl")
    shutil.rmtree(folder / "packs" / "int4")
    (folder / "packs" / "notes.txt").write_text("mine")
    with (folder / "chat" / "model.safetensors").open("rb+") as file:
        file.truncate(1000)
    (folder / "report.md").unlink()
    Tiny(folder, text, 0.01, "cpu", 3).run()
    assert {stage: digest(folder / stage) for stage in ("rl", "chat")} == weights
    assert (folder / "packs" / "int4" / "model.safetensors").exists()
    assert (folder / "packs" / "notes.txt").read_text() == "mine"
    assert (folder / "report.md").exists()


def test_an_interrupted_stage_resumes_exactly(
    text: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of training exits with 130, and the same command resumes."""

    def run(folder: Path) -> None:
        tiny = Tiny(folder, text, 0.01, "cpu", 3)
        tiny.tokenizer()
        tiny.stages.run("pretrain", partial(tiny.training, "pretrain"), "pretrain/model")

    write = MetricsFile.__call__

    def press(self: MetricsFile, event: Event) -> None:
        write(self, event)
        if isinstance(event, Stepped) and event.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    for name in ("whole", "interrupted"):
        (tmp_path / name / "pretrain").mkdir(parents=True)
        keep(tmp_path / name / "pretrain" / "steps.json", {"steps": 12})
    run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "__call__", press)
        with pytest.raises(SystemExit) as ended:
            run(tmp_path / "interrupted")
    assert ended.value.code == 130
    assert Stages(tmp_path / "interrupted").read() == {}
    run(tmp_path / "interrupted")
    assert Stages(tmp_path / "interrupted").read()["pretrain"]["steps"] == 12
    assert digest(tmp_path / "interrupted") == digest(tmp_path / "whole")


def digest(folder: Path) -> str:
    """Of the weights somewhere in a folder."""
    return sha256(next(folder.rglob("model.safetensors")))


def test_other_settings_need_another_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    Quickstart(folder, ["a slip of the pen"], 10, "cpu", 0)
    Quickstart(folder, [], 10, "cpu", 0).stages.run("corpus", dict)
    with pytest.raises(
        SettingError, match=r"--seed: .*run was started with 0; give another --folder"
    ):
        Quickstart(folder, [], 10, "cpu", 1)
    (folder / "stages.json").write_text("[]")
    with pytest.raises(SettingError, match=r"stages\.json: expected a mapping.*; delete it"):
        Quickstart(folder, [], 10, "cpu", 1)


def test_a_folder_may_have_any_name(text: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "my #1: [run]"
    folder.mkdir()
    assert Quickstart(folder, text, 10, "cpu", 0).config("sft").folder == str(folder / "sft")
