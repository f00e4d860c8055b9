"""Events of a run: their order, and that every listener is closed however the run ends."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from culm.config import parse
from culm.files import read_lines
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.run.train_settings import TrainConfig
from culm.train.events import Ended, Event, Failed, Listeners, Measured, Saved, Stepped
from culm.train.idle import IdleWatch
from culm.train.trackers.tensorboard import TensorBoard, TensorBoardListener
from culm.train.trackers.tracker import TrackerConfig, numbers
from culm.train.trackers.wandb import WandB

SEEN: list[Any] = []


class Recording(TrackerConfig):
    kind: Literal["recording"] = "recording"  # type: ignore[assignment]
    fails: bool = False

    def open(self, folder: Path, settings: Mapping[str, Any], step: int) -> "Recorder":
        SEEN.append(("open", folder.name, settings["train"]["steps"], step))
        return Recorder(self.fails)


class Recorder:
    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def __call__(self, event: Event) -> None:
        SEEN.append(event)
        if self.fails and isinstance(event, Stepped):
            raise RuntimeError("the tracker failed")

    def close(self) -> None:
        SEEN.append("closed")


def run(stage: Callable[..., dict], folder: Path, fails: bool = False, **more: Any):
    values = stage("sft", checkpoint={"every_steps": 2}, **{"steps": 4, **more})
    values["eval"]["every_steps"] = 2
    SEEN.clear()
    config = parse(RunConfig, {**values, "folder": str(folder)})
    return train(config.model_copy(update={"train": _tracked(config, Recording(fails=fails))}))


def _tracked(config: RunConfig, *trackers: TrackerConfig) -> TrainConfig:
    return config.train.model_copy(update={"trackers": trackers})


@pytest.fixture(autouse=True)
def settings_of_the_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings in a run folder do not name a tracker of this test."""
    from culm.run import train as module

    read = module.read_settings

    def kept(folder: Path, kind: type) -> Any:
        found = read(folder, kind)
        tracker = Recording(fails=FAILS[0])
        return found and found.model_copy(update={"train": _tracked(found, tracker)})

    write = module.write_settings

    def written(folder: Path, config: Any, source: Any) -> None:
        FAILS[0] = any(tracker.fails for tracker in config.train.trackers)
        write(folder, config.model_copy(update={"train": _tracked(config)}), source)

    monkeypatch.setattr(module, "read_settings", kept)
    monkeypatch.setattr(module, "write_settings", written)


FAILS = [False]


def test_events_come_in_order_and_carry_facts(stage: Callable[..., dict], tmp_path: Path) -> None:
    result = run(stage, tmp_path / "run")
    assert SEEN[0] == ("open", "run", 4, 0)
    kinds = [type(event).__name__ for event in SEEN[1:-1]]
    assert kinds == [
        "Measured", "Stepped", "Stepped", "Saved", "Measured", "Stepped", "Stepped", "Saved",
        "Measured", "Ended",
    ]  # fmt: skip
    assert SEEN[-1] == "closed"
    saved = [event for event in SEEN if isinstance(event, Saved)]
    assert [event.step for event in saved] == [2, 4]
    assert all((event.folder / "state.json").is_file() for event in saved)
    measured = [event for event in SEEN if isinstance(event, Measured)]
    lines = read_lines(tmp_path / "run" / "eval.jsonl")
    assert [{"step": event.step, **event.results} for event in measured] == lines
    (ended,) = [event for event in SEEN if isinstance(event, Ended)]
    assert (ended.step, ended.finished, ended.model) == (4, True, tmp_path / "run" / "model")
    assert ended.results == result.results


def test_listeners_are_closed_when_the_run_fails(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: IdleWatch, event: Event) -> None:
        if isinstance(event, Stepped):
            raise RuntimeError("something failed")

    monkeypatch.setattr(IdleWatch, "__call__", fail)
    with pytest.raises(RuntimeError, match="something failed"):
        run(stage, tmp_path / "run")
    [failed] = [event for event in SEEN if isinstance(event, Failed)]
    assert str(failed.error) == "something failed"
    assert not [event for event in SEEN if isinstance(event, Ended)]
    assert SEEN[-1] == "closed"


def test_a_tracker_that_fails_costs_what_it_shows(
    stage: Callable[..., dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As when its server is down: the run goes on, and says it once."""
    assert run(stage, tmp_path / "run", fails=True).finished
    said = " ".join(capsys.readouterr().err.split())
    assert (
        said.count("train.trackers: recording failed and gets no more of this run: the tracker f")
        == 1
    )
    assert len([event for event in SEEN if isinstance(event, Stepped)]) == 1


def test_a_resumed_run_opens_its_trackers_behind_its_last_step(
    stage: Callable[..., dict], tmp_path: Path
) -> None:
    run(stage, tmp_path / "run", steps=2)
    run(stage, tmp_path / "run", steps=4)
    assert SEEN[0] == ("open", "run", 4, 2)
    assert [event.step for event in SEEN if isinstance(event, Stepped)] == [3, 4]


def test_all_are_closed_even_if_closing_fails() -> None:
    closed = []

    class Closing:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, event: Event) -> None: ...

        def close(self) -> None:
            closed.append(self.name)
            if self.name == "second":
                raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        Listeners([Closing("first"), Closing("second"), Closing("third")]).close()
    assert closed == ["third", "second", "first"]


def test_numbers_of_nested_results() -> None:
    found = numbers({"loss": 1, "name": "x", "exact": {"all": {"value": 0.5, "ok": True}}})
    assert found == {"loss": 1.0, "exact.all.value": 0.5}


def test_tensorboard_writes_steps_and_evaluations(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    listener = TensorBoard().open(tmp_path, {}, 0)
    assert isinstance(listener, TensorBoardListener)
    for step in (1, 2):
        listener(Stepped(step, 2, 1.0 / step, 0.5, {"all": 0.01}, 10, 0.1, {"reward": 0.25}))
    listener(Measured(2, {"bits_per_byte": 3.0}))
    listener.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    assert events.Scalars("train/reward")[0].value == 0.25
    assert events.Scalars("eval/bits_per_byte")[0].value == 3.0


def test_a_tracker_without_its_package_names_the_extra(monkeypatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'culm\[tensorboard\]'"):
        TensorBoard().open(tmp_path, {}, 0)


def test_trackers_are_one_or_several() -> None:
    train = {"steps": 1, "trackers": "tensorboard"}
    values = {"data": {"path": "x"}, "train": train}
    assert parse(RunConfig, values).train.trackers == (TensorBoard(),)
    values["train"] = {"steps": 1, "trackers": ["tensorboard", "wandb"]}
    assert parse(RunConfig, values).train.trackers == (TensorBoard(), WandB())
