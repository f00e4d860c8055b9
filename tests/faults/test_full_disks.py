"""A disk that fills up costs what could not be written, and the run only if it stays full."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from stages import go

from culm import safetensors as tensors
from culm.files import read_json, read_lines
from culm.train.checkpoint.folder import steps_in
from culm.train.checkpoint.tensors import CheckpointError
from culm.train.events import Event, NotSaved
from culm.train.listeners import MetricsFile


def fill(patch: pytest.MonkeyPatch, *times: int) -> None:
    """The checkpoints of these numbers (from 0) find no room."""
    save, count = tensors.save_file, [0]

    def full(values: dict, path: Path, metadata: dict) -> None:
        count[0] += 1
        if count[0] - 1 in times:
            Path(path).write_bytes(b"some")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(values, path, metadata=metadata)

    patch.setattr(tensors, "save_file", full)


def test_the_next_one_is_tried(
    begun: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder, seen = Path(begun["folder"]), list[NotSaved]()
    call = MetricsFile.__call__

    def hear(self: MetricsFile, event: Event) -> None:
        call(self, event)
        if isinstance(event, NotSaved):
            assert steps_in(folder) == [2, 4]
            assert not list((folder / "checkpoints").glob(".*"))
            seen.append(event)

    monkeypatch.setattr(MetricsFile, "__call__", hear)
    fill(monkeypatch, 0, 1)
    assert go(begun, steps=12).finished
    assert [event.step for event in seen] == [6, 8]
    assert steps_in(folder) == [10, 12]
    said = " ".join(capsys.readouterr().err.split())
    assert "Step 6: a checkpoint was not written, and the run continues: " in said
    assert "step-6: could not be written (No space left on device)" in said


def test_after_too_many_in_a_row_the_run_ends(
    begun: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(begun["folder"])
    with monkeypatch.context() as patch:
        fill(patch, 0, 2, 3, 4)
        with pytest.raises(CheckpointError, match=r"step-14: could not be written \(No space left"):
            go(begun, steps=20)
    assert steps_in(folder) == [4, 8]
    assert go(begun, steps=20).finished
    assert [line["step"] for line in read_lines(folder / "metrics.jsonl")] == list(range(1, 21))


def test_the_last_one_must_be_written(
    begun: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(monkeypatch, 1)
    with pytest.raises(CheckpointError, match=r"step-8: could not be written"):
        go(begun, steps=8)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files there")
def test_files_that_may_not_grow(begun: dict[str, Any]) -> None:
    """A real limit of the system, in the command itself; all that Culm writes is under it."""
    file = Path(begun["folder"]).parent / "run.yaml"
    file.write_text(yaml.safe_dump(begun))
    code = (
        "import resource, signal, sys; from culm.cli import main; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); main()"
    )
    command = [sys.executable, "-c", code, "train", str(file), "train.steps=8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 5
    assert "step-8: could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert steps_in(Path(begun["folder"])) == [2, 4]
    assert read_json(Path(begun["folder"]) / "status.json")["state"] == "failed"


@pytest.mark.parametrize("cut", [0, 7], ids=["nothing", "half a line"])
def test_no_line_of_the_metrics_is_lost(
    cut: int, stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """Steps 3 to 5 find no room, and part of a line may be on the disk."""
    open_, failures = Path.open, [0]

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            if 3 <= json.loads(text.splitlines()[-1])["step"] <= 5:
                failures[0] += 1
                self.file.write(text[:cut])
                self.file.flush()
                raise OSError(errno.ENOSPC, "No space left on device")
            self.file.write(text)

    def limited(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        file = open_(self, mode, *rest, **more)
        return Full(file) if (self.name, mode) == ("metrics.jsonl", "a") else file

    monkeypatch.setattr(Path, "open", limited)
    assert go({**stage("sft", steps=7), "folder": str(tmp_path / "run")}).finished
    assert failures[0] == 3
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 8))
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("metrics.jsonl: could not be written (No space left on device); the run") == 1
    assert "damaged lines" not in said


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.slow
def test_a_terminal_that_takes_nothing(stage: Callable[..., dict], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**stage("sft"), "folder": str(tmp_path / "run")}))
    with open("/dev/full", "w") as full:
        code = subprocess.run(
            [sys.executable, "-m", "culm", "train", str(file)], stdout=full, stderr=full
        ).returncode
    assert code == 0
    assert read_json(tmp_path / "run" / "status.json")["state"] == "finished"
