"""Traces hold the steps that were asked for."""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from culm.config import SettingError
from culm.parallel.phases import phase
from culm.parallel.pulse import Pulse
from culm.run.settings import read_run
from culm.run.train import train
from culm.train.profile import ALLOCATIONS, Profile, ProfileConfig


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


def test_on_a_gpu_phases_are_ranges_of_nvtx(monkeypatch: pytest.MonkeyPatch) -> None:
    """For Nsight Systems. What would call the GPU is written down."""
    called: list[str] = []

    @contextmanager
    def range_of(name: str) -> Iterator[None]:
        called.append(name)
        yield
        called.append(f"end of {name}")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nvtx, "range", range_of)
    with phase("forward", Pulse()):
        called.append("work")
    assert called == ["forward", "work", "end of forward"]


@pytest.mark.parametrize("memory", [False, True])
def test_on_a_gpu_a_profile_has_a_snapshot_of_the_memory(
    memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[str, object]] = []

    def record(enabled: str | None = "all", max_entries: int = 0) -> None:
        called.append(("record", max_entries if enabled else None))

    def dump(name: str) -> None:
        called.append(("dump", name))

    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", record)
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", dump)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("culm.train.profile.profile", lambda **given: Silent())
    profiled = Profile(ProfileConfig(first=1, steps=1, memory=memory), tmp_path, 3, step=0)
    assert called == ([("record", ALLOCATIONS)] if memory else [])
    profiled.close()
    snapshot = [("dump", str(tmp_path / "rank-3.pickle")), ("record", None)]
    assert called[1:] == (snapshot if memory else [])


class Silent:
    """A profile of a GPU that is not there."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def export_chrome_trace(self, path: str) -> None: ...

    def key_averages(self) -> "Silent":
        return self

    def table(self, sort_by: str, row_limit: int) -> str:
        return "operators"
