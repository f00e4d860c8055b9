"""Versions on the hub: each step is a branch or a tag, and no network stops a run."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from hub_stub import REPO, Hub, hub
from stages import go, weights_in

from culm.config import SettingError, parse
from culm.convert import native
from culm.parallel.ranks import Ranks
from culm.run.settings import RunConfig
from culm.train.events import Stepped
from culm.train.push import Push, PushConfig

assert hub  # a fixture


def settings_of(stage: Callable[..., dict], folder: Path, **push: Any) -> dict[str, Any]:
    push = {"repo": REPO, "every_steps": 2, **push}
    return {**stage("sft", steps=5, push=push), "folder": str(folder)}


def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that take longer than an upload, so that none is left out."""
    call = Push.__call__

    def paused(self: Push, event: Any) -> None:
        call(self, event)
        if self._thread is not None:
            self._thread.join()

    monkeypatch.setattr(Push, "__call__", paused)


def test_a_branch_for_each_version(
    hub: Hub, stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(monkeypatch)
    go(settings_of(stage, tmp_path / "run"))
    assert set(hub.files) == {"main", "step-2", "step-4", "step-5"}
    assert hub.private is True
    assert not hub.files["main"]
    for step in (2, 4, 5):
        facts = json.loads(hub.files[f"step-{step}"]["step.json"])
        assert facts["step"] == step
        assert facts["loss"] > 0
        assert facts["measured"]["step"] == 0
    [message] = [m for branch, m in hub.commits.values() if branch == "step-4"]
    assert re.fullmatch(r"Step 4, loss \d\.\d{4}", message)
    for name, content in hub.files["step-5"].items():
        (tmp_path / "pushed" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pushed" / name).write_bytes(content)
    model, _ = native.load(tmp_path / "pushed")
    theirs = weights_in(tmp_path / "run")
    ours = {f"model/{name}": value for name, value in model.state_dict().items()}
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_tag_for_each_version(
    hub: Hub, stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(monkeypatch)
    go(settings_of(stage, tmp_path / "run", version="tag", private=False))
    assert set(hub.files) == {"main"}
    assert {tag: hub.commits[commit][1][:6] for tag, commit in hub.tags.items()} == {
        "step-2": "Step 2", "step-4": "Step 4", "step-5": "Step 5",
    }  # fmt: skip
    assert hub.private is False
    assert json.loads(hub.files["main"]["step.json"])["step"] == 5


@pytest.mark.parametrize("fault", ["refused", "no server", "offline"])
def test_a_network_that_fails_stops_nothing(
    fault: str, hub: Hub, stage: Callable[..., dict], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    match fault:
        case "refused":
            hub.status = 403
        case "no server":
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        case "offline":
            monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    slowly(monkeypatch)
    assert go(settings_of(stage, tmp_path / "run")).finished
    said = " ".join(capsys.readouterr().err.split())
    for step in (2, 4, 5):
        assert f"Step {step} was not pushed to {REPO}, and the run continues: " in said


def stepped(step: int, **more: Any) -> Stepped:
    return Stepped(step, 6, 1.5, 1.0, {"all": 1e-3}, step, 0.1, {}, last=step == 6, **more)


@pytest.mark.parametrize("rest", [{}, {"skipped": "the loss is nan"}])
def test_a_step_whose_update_was_left_out_is_a_version_too(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: dict
) -> None:
    slowly(monkeypatch)
    push = Push(PushConfig(repo=REPO, every_steps=2), lambda folder: folder.mkdir(), Ranks())
    for step in range(1, 7):
        push(stepped(step, **rest))
    push.close()
    assert set(hub.files) == {"main", "step-2", "step-4", "step-6"}
    facts = json.loads(hub.files["step-6"]["step.json"])
    assert facts.get("skipped") == rest.get("skipped")
    assert facts.get("loss") == (None if rest else 1.5)
    assert {message for _, message in hub.commits.values()} == {
        f"Step {step}{'' if rest else ', loss 1.5000'}" for step in (2, 4, 6)
    }


def test_a_run_that_is_stopped_pushes_what_it_has(hub: Hub, tmp_path: Path) -> None:
    push = Push(PushConfig(repo=REPO), lambda folder: folder.mkdir(), Ranks())
    for step in range(1, 4):
        push(stepped(step, stopped=step == 3))
    push.close()
    assert set(hub.files) == {"main", "step-3"}


def test_a_disk_without_room_for_a_copy_stops_nothing(
    hub: Hub, stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    def full(path: Path, values: dict) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("culm.train.push.write_json", full)
    assert go(settings_of(stage, tmp_path / "run")).finished
    said = " ".join(capsys.readouterr().err.split())
    assert f"Step 2 was not pushed to {REPO}, and the run continues: [Errno 28]" in said
    assert not hub.files


def test_a_slow_network_blocks_nothing(
    hub: Hub, stage: Callable[..., dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One upload at a time; the end of the run waits for it no longer than it may."""
    hub.delay = 30.0
    began = time.monotonic()
    assert go(settings_of(stage, tmp_path / "run", wait_seconds=0.2)).finished
    assert time.monotonic() - began < 20
    said = " ".join(capsys.readouterr().err.split())
    assert "Step 4 is not pushed: the version before is still being uploaded." in said
    assert f"The upload to {REPO} takes too long and is given up." in said


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "some body/x"])
def test_names_that_are_no_repository(repo: str, stage: Callable[..., dict]) -> None:
    with pytest.raises(SettingError, match=r"train\.push\.repo"):
        parse(RunConfig, stage("sft", push={"repo": repo}))
