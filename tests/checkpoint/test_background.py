"""Checkpoints that are written while the run continues."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stages import go, weights_in
from torch import equal

from culm.files import read_lines
from culm.train.checkpoint import whole
from culm.train.checkpoint.folder import steps_in, verify
from culm.train.checkpoint.tensors import CheckpointError
from culm.train.events import Event, Saved, Stepped
from culm.train.listeners import MetricsFile

write = whole.write_safetensors


def settings_of(stage: Callable[..., dict], folder: Path, form: str = "whole", **more: Any) -> dict:
    checkpoint = {"every_steps": 1, "asynchronous": True, "keep": 20, "form": form}
    return {**stage("sft", checkpoint=checkpoint, **more), "folder": str(folder)}


@pytest.mark.parametrize("form", ["whole", "sharded"])
def test_the_same_run(form: str, stage: Callable[..., dict], tmp_path: Path) -> None:
    """Whenever it is resumed: what was saved is of its step, though the run had gone on."""
    settings = settings_of(stage, tmp_path / "run", form, steps=4)
    go(settings)
    plain = {**settings, "folder": str(tmp_path / "plain")}
    go(plain, checkpoint={})
    for step in steps_in(tmp_path / "run")[:2]:
        again = tmp_path / f"from-{step}"
        for name in ("tokenizer", "data"):
            if (tmp_path / "run" / name).exists():
                (again / name).parent.mkdir(exist_ok=True)
                os.symlink(tmp_path / "run" / name, again / name)
        (again / "checkpoints").mkdir(parents=True)
        (again / "run.yaml").write_text((tmp_path / "run" / "run.yaml").read_text())
        place = tmp_path / "run" / "checkpoints" / f"step-{step}"
        place.rename(again / "checkpoints" / f"step-{step}")
        go({**settings, "folder": str(again)})
        theirs = weights_in(tmp_path / "plain")
        assert all(equal(value, theirs[name]) for name, value in weights_in(again).items())


def test_a_slow_disk_does_not_slow_steps(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """One save at a time: those that are due meanwhile are left out, except the last."""
    running, most, slow = [0], [0], threading.Event()

    def slowly(*arguments: Any) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        slow.wait(0.5)
        write(*arguments)
        running[0] -= 1

    monkeypatch.setattr(whole, "write_safetensors", slowly)
    settings = settings_of(stage, tmp_path / "run", steps=8)
    go(settings)
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert max(line["seconds"] for line in lines) < 0.5
    assert most[0] == 1
    saved = steps_in(tmp_path / "run")
    assert saved[0] == 1
    assert saved[-1] == 8
    assert len(saved) < 8
    said = " ".join(capsys.readouterr().err.split())
    for step in set(range(1, 9)) - set(saved):
        assert f"Step {step}: its checkpoint is left out, since the one before is still" in said


def test_it_is_announced_when_it_is_on_the_disk(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    may_write = threading.Event()
    call = MetricsFile.__call__

    def hear(self: MetricsFile, event: Event) -> None:
        call(self, event)
        if isinstance(event, Saved):
            assert (event.folder / "state.json").exists()
            assert threading.current_thread() is threading.main_thread()
            seen.append(f"saved {event.step}")
        if isinstance(event, Stepped):
            seen.append(f"step {event.step}")
            if event.step == 3:
                may_write.set()

    def wait(*arguments: Any) -> None:
        assert may_write.wait(20)
        write(*arguments)

    monkeypatch.setattr(MetricsFile, "__call__", hear)
    monkeypatch.setattr(whole, "write_safetensors", wait)
    go(settings_of(stage, tmp_path / "run", steps=5))
    assert seen.index("saved 1") > seen.index("step 3")
    assert seen[-1] == "saved 5"


@pytest.mark.parametrize("failures", [0, 2])
def test_an_error_surfaces_at_the_next_step(
    failures: int, stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    settings = settings_of(stage, tmp_path / "run", steps=20)
    settings["train"]["checkpoint"]["failures"] = failures

    def fail(path: Path, tensors: dict) -> None:
        path.write_bytes(b"some")
        raise OSError(28, "No space left on device")

    call = MetricsFile.__call__

    def pause(self: MetricsFile, event: Event) -> None:
        call(self, event)
        time.sleep(0.1)  # so that the thread has ended before the next step asks

    go(settings, steps=1)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(whole, "write_safetensors", fail)
        patch.setattr(MetricsFile, "__call__", pause)
        last = 2 + failures
        with pytest.raises(
            CheckpointError, match=rf"step-{last}: could not be written \(No space left"
        ):
            go(settings)
    said = " ".join(capsys.readouterr().err.split())
    for step in range(3, 3 + failures):
        assert f"Step {step}: a checkpoint was not written, and the run continues" in said
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == last + 1
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-1"]
    assert go(settings, steps=3).finished


def test_an_error_of_the_run_does_not_cost_what_is_being_written(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = MetricsFile.__call__

    def fail(self: MetricsFile, event: Event) -> None:
        call(self, event)
        if isinstance(event, Stepped) and event.step == 2:
            raise ValueError("something else")

    def slowly(*arguments: Any) -> None:
        time.sleep(0.5)
        write(*arguments)

    monkeypatch.setattr(MetricsFile, "__call__", fail)
    monkeypatch.setattr(whole, "write_safetensors", slowly)
    with pytest.raises(ValueError, match="something else"):
        go(settings_of(stage, tmp_path / "run", steps=4))
    assert steps_in(tmp_path / "run") == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("form", ["whole", "sharded"])
def test_killed_while_it_is_written(
    form: str, stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the data and the commit."""
    settings = settings_of(stage, tmp_path / "run", form, steps=6)
    child = os.fork()
    if child == 0:
        count = [0]

        def die(*arguments: Any) -> None:
            count[0] += 1
            if count[0] == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            from culm.train.checkpoint.folder import write_state

            write_state(*arguments)

        monkeypatch.setattr("culm.train.checkpoint.store.write_state", die)
        go(settings)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    progress, refused = verify(tmp_path / "run")
    assert progress is not None
    assert (progress.step, refused) == (1, [])
    assert list((tmp_path / "run" / "checkpoints").glob(".*"))
    assert go(settings).finished
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
