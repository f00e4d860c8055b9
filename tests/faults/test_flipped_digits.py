"""One digit of one file of a run is another one, and the file is still readable."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stages import go, weights_in

from culm.config import SettingError
from culm.data.manifest import Manifest
from culm.run.difficulty import NAME as LOSSES
from culm.run.precomputed import NAME as PRECOMPUTED
from culm.train.checkpoint.folder import VERSION, verify
from culm.train.checkpoint.tensors import CheckpointError


def flipped(content: bytes) -> Iterator[bytes]:
    """The content with one digit more by one, for each digit of a JSON; of another file, with one
    bit of each of ten bytes.
    """
    if content.startswith(b"{"):
        for place, digit in enumerate(content):
            if chr(digit).isdigit():
                other = str((int(chr(digit)) + 1) % 10).encode()
                changed = content[:place] + other + content[place + 1 :]
                if values_of(changed) != values_of(content):  # no last digit of a long fraction
                    yield changed
        return
    for place in range(0, len(content), max(1, len(content) // 10)):
        yield content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def values_of(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


@pytest.mark.parametrize("form", ["whole", "sharded"])
def test_a_checkpoint_with_any_other_digit_is_refused(
    form: str, stage: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """By the name of the file, so that the run resumes from the good one before it."""
    settings = {**stage("sft"), "folder": str(tmp_path / "run")}
    go(settings, steps=4, checkpoint={"every_steps": 2, "form": form})
    place, tried = tmp_path / "run" / "checkpoints" / "step-4", 0
    for file in sorted(path for path in place.rglob("*") if path.is_file()):
        content = file.read_bytes()
        for changed in flipped(content):
            tried += 1
            file.write_bytes(changed)
            version = (values_of(changed) or {}).get("version", VERSION)
            if version != VERSION:
                with pytest.raises(CheckpointError, match="step-4: written by another version"):
                    verify(tmp_path / "run")
                continue
            progress, [refused] = verify(tmp_path / "run")
            assert (progress and progress.step, refused.path) == (2, place), changed
            assert file.name in refused.reason
        file.write_bytes(content)
    assert tried > 200  # the settings and the digests have many digits
    progress, damaged = verify(tmp_path / "run")
    assert (progress and progress.step, damaged) == (4, [])


def test_a_manifest_with_any_other_digit_is_refused(
    stage: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    settings = {**stage("sft"), "folder": str(tmp_path / "run")}
    go(settings, steps=1)
    folder = tmp_path / "run" / "data"
    file = folder / "manifest.json"
    content = file.read_bytes()
    for changed in flipped(content):
        file.write_bytes(changed)
        with pytest.raises(SettingError, match=r"manifest\.json: (changed since|damaged)"):
            Manifest.read(folder)
    with pytest.raises(SettingError, match=r"manifest\.json: (changed since|damaged)"):
        go(settings, steps=2)


@pytest.mark.parametrize("name", [PRECOMPUTED, LOSSES])
def test_numbers_that_a_run_computed_before_are_computed_again(
    name: str, stage: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Those of a reference model, for DPO and for a curriculum."""
    settings = stage("precomputed" if name == PRECOMPUTED else "curriculum")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    go({**settings, "folder": str(whole)}, steps=4)
    settings["folder"] = str(parts)
    go(settings, steps=2)
    content = (parts / name).read_bytes()
    for place in (len(content) // 2, len(content) // 3):
        (parts / name).write_bytes(
            content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]
        )
        go(settings, steps=3 if place == len(content) // 2 else 4)
        assert (parts / name).read_bytes() == content
    one, other = weights_in(whole), weights_in(parts)
    assert all(bool((weight == other[key]).all()) for key, weight in one.items())
