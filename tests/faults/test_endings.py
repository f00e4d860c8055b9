"""How runs end: exit codes, status.json, one signal and two."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from stages import go

from culm.atomic import InUseError
from culm.exits import OutOfMemory, RunError, exit_code
from culm.files import read_json, read_lines
from culm.train.checkpoint.folder import steps_in
from culm.train.checkpoint.tensors import CheckpointError
from culm.train.judge import TrainingError
from culm.train.replicas import ReplicaError
from culm.train.status import Status

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def test_each_kind_of_error_has_a_code_of_its_own(root: Path) -> None:
    codes = {
        ValueError: 1, TrainingError: 3, OutOfMemory: 4, MemoryError: 4, CheckpointError: 5,
        ReplicaError: 6, InUseError: 7,
    }  # fmt: skip
    for kind, code in codes.items():
        assert exit_code(kind("some words")) == code
    page = (root / "docs" / "reference" / "exits.md").read_text()
    for code in {*codes.values(), 0, 2, 8, 75, 130}:
        assert f"\n| {code} |" in page
    assert issubclass(ReplicaError, RunError)


def begin(settings: dict[str, Any], code: str = "from culm.cli import main; main()") -> Any:
    """The command itself, after a few steps."""
    folder = Path(settings["folder"])
    file = folder.parent / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", str(file)], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    until = time.monotonic() + 60
    while len(read_lines(folder / "metrics.jsonl")) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 75), ("SIGHUP", 75), ("SIGINT", 130)])
def test_a_signal_saves_and_says_whether_to_start_again(
    number: str, code: int, stage: Callable[..., dict], tmp_path: Path
) -> None:
    settings = {**stage("sft", steps=100_000), "folder": str(tmp_path / "run")}
    process = begin(settings)
    running = read_json(tmp_path / "run" / "status.json")
    assert (running["state"], running["pid"], running["steps"]) == ("running", process.pid, 100_000)
    process.send_signal(getattr(signal, number))
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    status = read_json(tmp_path / "run" / "status.json")
    assert status["state"] == "interrupted"
    assert steps_in(tmp_path / "run") == [status["step"]]


STUCK = """
import time
from culm.train.trainer import Trainer
step = Trainer._step
def hang(self, batches, number, *rest):
    if number == 2:
        {hang}
    return step(self, batches, number, *rest)
Trainer._step = hang
from culm.cli import main
main()
"""
IN_PYTHON = "time.sleep(600)"
# A call to C that runs no handler of Python, and does not end at a signal.
MUTEX = "m = ctypes.create_string_buffer(64); c.pthread_mutex_lock(m); c.pthread_mutex_lock(m)"
IN_C = f"import ctypes; c = ctypes.CDLL(None); {MUTEX}"


@pytest.mark.slow
@pytest.mark.parametrize("hang", [IN_PYTHON, IN_C], ids=["python", "c"])
def test_a_second_signal_ends_at_once(
    hang: str, stage: Callable[..., dict], tmp_path: Path
) -> None:
    """Also in a call that does not come back, as when it waits for another rank."""
    checkpoint = {"every_steps": 1}
    settings = {
        **stage("sft", steps=100, checkpoint=checkpoint), "folder": str(tmp_path / "run"),
    }  # fmt: skip
    process = begin(settings, STUCK.format(hang=hang))
    time.sleep(0.5)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert read_json(tmp_path / "run" / "status.json")["state"] == "interrupted"
    assert steps_in(tmp_path / "run") == [1, 2]
    assert go(settings, steps=4).finished


def test_the_status_of_runs_that_finish_and_fail(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**stage("sft"), "folder": str(tmp_path / "run")}
    go(settings)
    status = read_json(tmp_path / "run" / "status.json")
    assert (status["state"], status["reason"], status["step"]) == ("finished", None, 3)
    assert status["pid"] == os.getpid()
    wild = {"kind": "adamw", "rate": 1e30}
    with pytest.raises(RunError):
        go(settings, steps=9, optimizer=wild)
    status = read_json(tmp_path / "run" / "status.json")
    assert (status["state"], status["steps"]) == ("failed", 9)
    assert "train.optimizer.rate" in status["reason"]


def test_a_status_that_cannot_be_written_does_not_cost_the_run(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, values: dict) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("culm.train.status.write_json", full)
    assert go({**stage("sft"), "folder": str(tmp_path / "run")}).finished
    assert not (tmp_path / "run" / "status.json").exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("[gloo/pair.cc:537] Connection closed by peer [::1]:4"), "another rank"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "not enough"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "a.txt: no such file"),
    ],
)
def test_the_status_gives_a_reason_for_people(tmp_path: Path, error: Exception, reason: str):
    with pytest.raises(type(error)), Status(tmp_path, 5).kept():
        raise error
    assert read_json(tmp_path / "status.json")["reason"].startswith(reason)
