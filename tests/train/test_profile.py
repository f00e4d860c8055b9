"""Traces hold the steps that were asked for."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from culm.run.settings import read_run
from culm.run.train import train
from culm.train.profile import Profile, ProfileConfig


def updates(folder: Path) -> int:
    """Steps of the optimizer in the trace of rank 0."""
    content = gzip.decompress((folder / "profile" / "rank-0.json.gz").read_bytes())
    names = [event.get("name", "") for event in json.loads(content)["traceEvents"]]
    return sum(name.startswith("Optimizer.step") for name in names)


@pytest.mark.parametrize(("first", "steps", "found"), [(1, 1, 1), (2, 2, 2), (4, 9, 1), (9, 1, 0)])
def test_a_trace_holds_the_chosen_steps(
    run_file: Callable[..., Path], first: int, steps: int, found: int
) -> None:
    file = run_file("pretrain", steps=4, profile={"first": first, "steps": steps})
    config, _ = read_run(str(file))
    train(config)
    folder = Path(config.folder)
    if not found:
        assert not (folder / "profile").exists()
        return
    assert updates(folder) == found
    assert "aten::mm" in (folder / "profile" / "rank-0.txt").read_text()


def test_a_resumed_run_profiles_only_what_is_to_come(tmp_path: Path) -> None:
    profile = Profile(ProfileConfig(first=3, steps=2), tmp_path / "profile", 0, step=5)
    profile.close()
    assert not (tmp_path / "profile").exists()
