"""Traces hold the steps that were asked for."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from culm.config import SettingError
from culm.run.settings import read_run
from culm.run.train import train
from culm.train.profile import Profile, ProfileConfig


def phases(folder: Path) -> Counter[str]:
    """How often each phase of a step is in the trace of rank 0."""
    content = gzip.decompress((folder / "profile" / "rank-0.json.gz").read_bytes())
    events = json.loads(content)["traceEvents"]
    return Counter(e["name"] for e in events if e.get("cat") == "user_annotation")


@pytest.mark.parametrize(("first", "steps", "found"), [(1, 1, 1), (2, 2, 2), (4, 9, 1)])
def test_a_trace_holds_the_chosen_steps(
    run_file: Callable[..., Path], first: int, steps: int, found: int
) -> None:
    file = run_file("pretrain", steps=4, profile={"first": first, "steps": steps})
    config, _ = read_run(str(file))
    train(config)
    folder = Path(config.folder)
    micro_batches = 2
    each = {"data": 1, "forward": micro_batches, "backward": micro_batches, "clip": 1}
    times = phases(folder)
    for name, count in {**each, "optimizer": 1}.items():
        assert times[name] == count * found, name
    assert "aten::mm" in (folder / "profile" / "rank-0.txt").read_text()


def test_a_trace_of_no_step_is_refused(run_file: Callable[..., Path]) -> None:
    file = run_file("pretrain", steps=4, profile={"first": 9})
    with pytest.raises(SettingError, match=r"train\.profile\.first: step 9 is after the last"):
        read_run(str(file))


def test_a_resumed_run_profiles_only_what_is_to_come(tmp_path: Path) -> None:
    profile = Profile(ProfileConfig(first=3, steps=2), tmp_path / "profile", 0, step=5)
    profile.close()
    assert not (tmp_path / "profile").exists()
