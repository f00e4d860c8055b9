"""Clocks that jump, locks of dead processes, other versions, and what is recorded of a machine."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import go, weights_in

import culm.atomic
from culm.atomic import InUseError
from culm.files import read_json, read_lines, write_json
from culm.run import manifest
from culm.train.checkpoint.folder import steps_in
from culm.train.guard import locked

fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_a_clock_that_jumps(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is ordered or timed by it: rates use a monotonic clock, checkpoints their step."""
    settings = {**stage("sft", steps=6, checkpoint={"every_steps": 2}), "folder": ""}
    go({**settings, "folder": str(tmp_path / "one")})
    calls, real = [0], time.time

    def jumping() -> float:
        calls[0] += 1
        return real() + (-1) ** calls[0] * 86_400 * calls[0]

    monkeypatch.setattr(time, "time", jumping)
    two = {**settings, "folder": str(tmp_path / "two")}
    go(two, steps=4)
    go(two)
    ours, theirs = weights_in(tmp_path / "two"), weights_in(tmp_path / "one")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    lines = read_lines(tmp_path / "two" / "metrics.jsonl")
    assert all(0 < line["seconds"] < 60 for line in lines)
    assert steps_in(tmp_path / "two") == [4, 6]


@fork
def test_the_lock_of_a_dead_process(begun: dict[str, Any]) -> None:
    folder = Path(begun["folder"])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(folder):
            os.write(writing, b"x")
            time.sleep(600)
    os.read(reading, 1)
    write_json(folder / "status.json", {"state": "running", "pid": child, "host": "node7"})
    with pytest.raises(InUseError, match=rf"running here \(process {child} on node7\); wait for"):
        go(begun, steps=6)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert go(begun, steps=6).finished


@fork
def test_killed_while_an_old_checkpoint_is_removed(
    begun: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is renamed first, so no half of it counts; the next start removes it."""
    folder = Path(begun["folder"])
    child = os.fork()
    if child == 0:
        remove = shutil.rmtree

        def die(path: Path, **more: Any) -> None:
            if Path(path).name == culm.atomic.DISCARDED:
                next(Path(path).glob("*")).unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            remove(path, **more)

        monkeypatch.setattr(culm.atomic.shutil, "rmtree", die)
        go(begun, steps=8)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert steps_in(folder) == [4, 6]
    assert list((folder / "checkpoints").glob(".*"))
    assert go(begun, steps=8).finished
    assert not list((folder / "checkpoints").glob(".*"))
    assert steps_in(folder) == [6, 8]


def test_what_each_start_was_made_with(
    begun: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    go(begun, steps=6)
    assert "other versions" not in capsys.readouterr().err
    versions = manifest._versions()
    monkeypatch.setattr(manifest, "_versions", lambda: {**versions, "torch": "9.9.9"})
    go(begun, steps=8)
    said = " ".join(capsys.readouterr().err.split())
    assert f"other versions (torch {versions['torch']} then, 9.9.9 now): from here on" in said
    starts = read_json(Path(begun["folder"]) / "manifest.json")["starts"]
    assert [start["step"] for start in starts] == [0, 4, 6]
    first = starts[0]
    assert first["versions"]["torch"] == versions["torch"]
    assert {"python", "culm", "numpy"} <= first["versions"].keys()
    assert (first["seed"], first["deterministic"], first["ranks"]) == (0, False, 1)
    state = read_json(Path(begun["folder"]) / "checkpoints" / "step-8" / "state.json")
    assert first["data"] == state["data"]
    assert first["reads"] == state["reads"]
    assert first["hardware"]["device"] == "cpu"
    assert first["git"] is None or len(first["git"]["commit"]) == 40


def test_deterministic_kernels(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the same bits; an operator without a deterministic kernel is refused by name."""
    for name in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO", "NCCL_NVLS_ENABLE"):
        monkeypatch.delenv(name, raising=False)
    settings = {**stage("sft"), "deterministic": True}
    try:
        for kind in ("one", "two"):
            go({**settings, "folder": str(tmp_path / kind)})
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not torch.backends.cudnn.benchmark
        with pytest.raises(RuntimeError, match=r"put_.* does not have a deterministic impl"):
            torch.zeros(4).put_(torch.tensor([1, 1]), torch.ones(2), accumulate=False)
    finally:
        torch.use_deterministic_algorithms(False)
    ours, theirs = weights_in(tmp_path / "two"), weights_in(tmp_path / "one")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    [start] = read_json(tmp_path / "one" / "manifest.json")["starts"]
    assert start["deterministic"]
