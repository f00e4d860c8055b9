"""A damaged checkpoint is refused by name, and the good one before it is restored."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stages import bytes_in, go, weights_in

from culm.files import read_lines
from culm.train.checkpoint.folder import steps_in, verify
from culm.train.checkpoint.tensors import CheckpointError

DAMAGES = {
    "truncated": "the SHA-256 of state.safetensors differs",
    "flipped": "the SHA-256 of state.safetensors differs",
    "gone": "state.safetensors is missing",
    "changed state": "the SHA-256 of state.json differs",
    "garbled state": "state.json does not describe a checkpoint",
    "empty state": "state.json does not describe a checkpoint",
    "no state": "state.json is missing",
}


def damage(place: Path, kind: str) -> None:
    weights, state = place / "state.safetensors", place / "state.json"
    match kind:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "flipped":
            data = bytearray(weights.read_bytes())
            data[len(data) // 2] ^= 1
            weights.write_bytes(data)
        case "gone":
            weights.unlink()
        case "changed state":
            state.write_text(state.read_text().replace('"step": 4', '"step": 3'))
        case "garbled state":
            state.write_text(state.read_text()[:-100])
        case "empty state":
            state.write_text("[]")
        case "no state":
            state.unlink()


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_good_one_before_it_is_restored(
    kind: str, begun: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = Path(begun["folder"])
    whole = tmp_path / "whole"
    go({**begun, "folder": str(whole)}, steps=6)
    place = folder / "checkpoints" / "step-4"
    damage(place, kind)
    left = bytes_in(place)
    capsys.readouterr()
    assert go(begun, steps=6).finished
    said = " ".join(capsys.readouterr().err.split())
    assert f"step-4: damaged ({DAMAGES[kind]}), so the run resumes from step-2; the damaged" in said
    assert "is now damaged-step-4." in said
    assert "after step 2" in said
    assert bytes_in(folder / "checkpoints" / "damaged-step-4") == left
    assert steps_in(folder) == [4, 6]
    ours, theirs = weights_in(folder), weights_in(whole)
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)
    assert [line["step"] for line in read_lines(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_second_damaged_one_of_a_step_has_a_name_of_its_own(begun: dict[str, Any]) -> None:
    folder = Path(begun["folder"])
    for _ in range(2):
        damage(folder / "checkpoints" / "step-4", "flipped")
        go(begun)
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"step-2", "step-4", "damaged-step-4", "damaged-step-4-2"}


def test_when_all_are_damaged_nothing_is_touched(begun: dict[str, Any]) -> None:
    folder = Path(begun["folder"])
    damage(folder / "checkpoints" / "step-4", "truncated")
    damage(folder / "checkpoints" / "step-2", "gone")
    before = bytes_in(folder / "checkpoints")
    with pytest.raises(
        CheckpointError,
        match=r"checkpoints: every checkpoint is damaged \(step-4: the SHA-256 of state\.safeten"
        r"sors differs; step-2: state\.safetensors is missing\); restore one",
    ):
        go(begun, steps=6)
    assert bytes_in(folder / "checkpoints") == before
    shutil.rmtree(folder / "checkpoints")  # the remedy
    assert go(begun, steps=6).finished


def test_a_plan_says_it_and_renames_nothing(begun: dict[str, Any]) -> None:
    folder = Path(begun["folder"])
    damage(folder / "checkpoints" / "step-4", "flipped")
    before = bytes_in(folder)
    progress, refused = verify(folder)
    assert progress is not None
    assert progress.step == 2
    assert [one.path.name for one in refused] == ["step-4"]
    assert bytes_in(folder) == before


def test_one_of_another_version_is_no_damage(begun: dict[str, Any]) -> None:
    """It is neither renamed nor skipped: the run would silently lose steps."""
    state = Path(begun["folder"]) / "checkpoints" / "step-4" / "state.json"
    values = json.loads(state.read_text())
    del values["version"]
    state.write_text(json.dumps(values))
    before = bytes_in(Path(begun["folder"]) / "checkpoints")
    with pytest.raises(CheckpointError, match="step-4: written by another version of Culm"):
        go(begun, steps=6)
    assert bytes_in(Path(begun["folder"]) / "checkpoints") == before


def test_files_of_two_saves_are_not_mixed(begun: dict[str, Any]) -> None:
    """The digests in state.json belong to one save."""
    checkpoints = Path(begun["folder"]) / "checkpoints"
    shutil.copy(checkpoints / "step-2" / "state.safetensors", checkpoints / "step-4")
    progress, refused = verify(Path(begun["folder"]))
    assert progress is not None
    assert (progress.step, [one.path.name for one in refused]) == (2, ["step-4"])


def test_those_of_every_so_many_steps_stay(stage: Callable[..., dict], tmp_path: Path) -> None:
    kept = {"every_steps": 1, "keep": 2, "keep_every_steps": 3}
    settings = {**stage("sft", steps=8, checkpoint=kept), "folder": str(tmp_path / "run")}
    go(settings)
    assert steps_in(tmp_path / "run") == [3, 6, 7, 8]
