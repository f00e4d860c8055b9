"""The update of a spike is left out; after too many the run goes back and leaves out the data."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import go, weights_in

from culm.config import SettingError, parse
from culm.data.loader import Loader
from culm.eval.curves import ends, read_measured
from culm.eval.report import write_report
from culm.files import read_lines
from culm.run.settings import RunConfig
from culm.train.judge import TrainingError
from culm.train.spikes import SpikeConfig, Spikes, TooManySpikes
from culm.train.trainer import Trainer
from culm.train.update import Update

SPIKE = {"window": 8, "warmup": 2, "deviations": 8.0, "skips": 1, "rewinds": 2}


def judge_of(**more: Any) -> Spikes:
    return Spikes(SpikeConfig(**{"window": 16, "warmup": 4, "skips": 20, **more}))


def test_a_spike_of_either_number_is_left_out() -> None:
    spikes = judge_of()
    for step in range(1, 10):
        assert spikes.judge(step, 3.0 + 0.01 * (step % 3), 1.0 + 0.1 * (step % 2)) is None
    assert "the loss is 9, usual is 3.01" in str(spikes.judge(10, 9.0, 1.0))
    assert "the gradient norm is 1e+04, usual is 1" in str(spikes.judge(11, 3.0, 1e4))
    assert spikes.judge(12, 2.0, 0.5) is None  # lower is no spike
    assert spikes.judge(13, 3.02, 1.1) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_enters_the_statistics(value: float) -> None:
    """A mean with a NaN in its window would leave out every later step."""
    spikes = judge_of()
    for step in range(1, 40):
        bad = step % 5 == 0
        found = spikes.judge(step, value if bad else 3.0, 1.0)
        assert (found is not None) == bad, step
    assert all(math.isfinite(fact.loss) for fact in spikes.usual)
    assert spikes.judge(40, 3.0, value) is not None
    assert spikes.judge(41, 9.0, 1.0) is not None


def test_nothing_is_judged_by_too_few_steps() -> None:
    spikes = judge_of(warmup=4)
    for step, loss in enumerate([9.0, 3.0, 30.0, 1.0], start=1):
        assert spikes.judge(step, loss, 1.0) is None
    assert spikes.judge(5, 3000.0, 1.0) is not None


def test_spikes_do_not_move_what_is_usual() -> None:
    """Half of the window may be outliers that entered it during the warm-up."""
    spikes = judge_of(warmup=7)
    for step, loss in enumerate([3.0, 3.1, 900.0, 3.0, 800.0, 3.1, 3.0], start=1):
        assert spikes.judge(step, loss, 1.0) is None
    assert spikes.judge(8, 700.0, 1.0) is not None


def test_the_number_of_skips_is_bounded_within_a_window() -> None:
    spikes = judge_of(window=8, skips=2)
    for step in range(1, 9):
        spikes.judge(step, 3.0, 1.0)
    assert spikes.judge(9, 99.0, 1.0) is not None
    assert spikes.judge(10, 99.0, 1.0) is not None
    for step in range(11, 18):
        assert spikes.judge(step, 3.0, 1.0) is None
    for step in (18, 19):  # the first two are out of the window
        assert spikes.judge(step, 99.0, 1.0) is not None
    with pytest.raises(TooManySpikes, match="step 20: the loss is 99, usual is 3; that is spike 3"):
        spikes.judge(20, 99.0, 1.0)


def test_the_state_gives_the_same_judgement() -> None:
    spikes, again = judge_of(), judge_of()
    for step in range(1, 12):
        spikes.judge(step, 3.0 + 0.1 * step if step != 9 else 77.0, 1.0)
    again.restore(spikes.state())
    assert (again.usual, again.skipped) == (spikes.usual, spikes.skipped)


@pytest.fixture
def bad_data(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Steps of the data whose loss is a spike; gives the steps of the data that were read."""

    def inject(*bad: int, loss: float = 1e4) -> list[int]:
        read: list[int] = []
        step, reduce = Loader.step, Trainer._reduce

        def recorded(self: Loader, number: int) -> Any:
            read.append(number)
            return step(self, number)

        def spiked(self: Trainer, *arguments: Any) -> Any:
            found, *rest = reduce(self, *arguments)
            return (found * loss if read[-1] in bad else found, *rest)

        monkeypatch.setattr(Loader, "step", recorded)
        monkeypatch.setattr(Trainer, "_reduce", spiked)
        return read

    return inject


def no_json(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def settings_of(stage: Callable[..., dict], folder: Path, **more: Any) -> dict[str, Any]:
    trained = {"spike": SPIKE, "steps": 8, "checkpoint": {"every_steps": 2}, **more}
    return {**stage("sft", **trained), "folder": str(folder)}


@pytest.mark.parametrize("loss", [1e4, math.nan], ids=["spike", "nan"])
def test_a_skipped_step_changes_nothing(
    loss: float, stage: Callable[..., dict], tmp_path: Path, bad_data: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = settings_of(stage, tmp_path / "run")  # trains what it starts from, once
    bad_data(4, loss=loss)
    updates: list[int] = []
    apply = Update.apply

    def counted(self: Update, number: int) -> dict[str, float]:
        updates.append(1)
        return apply(self, number)

    monkeypatch.setattr(Update, "apply", counted)
    assert go(settings).finished
    assert len(updates) == 7
    path = tmp_path / "run" / "metrics.jsonl"
    lines = read_lines(path)
    assert [line["step"] for line in lines if "skipped" in line] == [5]
    assert "the loss is" in lines[4]["skipped"]
    strict = [json.loads(line, parse_constant=no_json) for line in path.read_text().splitlines()]
    assert (strict[4]["loss"] is None) == math.isnan(loss) == math.isnan(lines[4]["loss"])
    write_report(tmp_path / "run")
    assert "failed" not in (tmp_path / "run" / "report.md").read_text()
    run = read_measured(tmp_path / "run")
    assert (5 in run.values["loss"]) == math.isfinite(loss)
    assert math.isfinite(ends([run], "loss")[0])


def test_it_goes_back_and_leaves_out_the_data(
    stage: Callable[..., dict], tmp_path: Path, bad_data: Callable, capsys: pytest.CaptureFixture
) -> None:
    """Data steps 4 and 5 are bad: the second spike, at step 6, leads back to step 4."""
    read = bad_data(4, 5)
    result = go(settings_of(stage, tmp_path / "run"))
    assert result.finished
    said = " ".join(capsys.readouterr().err.split())
    assert "spike 2 within 8 steps: back to step 4, and the data of 2 steps are left out." in said
    assert result.results["data"][-1] == "2 steps of data were left out after spikes."
    assert read[1:] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]  # the first one is the dry run
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert not any("skipped" in line for line in lines)


@pytest.mark.parametrize("form", ["whole", "sharded"])
def test_it_is_then_the_run_that_never_had_that_data(
    form: str, stage: Callable[..., dict], tmp_path: Path, bad_data: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """No gradient, moment or random number of the spikes is left, bit for bit."""
    with monkeypatch.context() as patch:
        step = Loader.step
        patch.setattr(Loader, "step", lambda self, n: step(self, n if n < 4 else n + 2))
        go(settings_of(stage, tmp_path / "never", spike=None))
    bad_data(4, 5)
    checkpoint = {"every_steps": 2, "form": form}
    go(settings_of(stage, tmp_path / "back", checkpoint=checkpoint))
    ours, theirs = weights_in(tmp_path / "back"), weights_in(tmp_path / "never")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.slow
def test_a_run_that_went_back_resumes_exactly(
    stage: Callable[..., dict], tmp_path: Path, bad_data: Callable
) -> None:
    bad_data(4, 5)
    whole = settings_of(stage, tmp_path / "whole", steps=10)
    parts = {**whole, "folder": str(tmp_path / "parts")}
    go(whole)
    for steps in (2, 4, 6, 8, 10):  # with the same checkpoints
        go(parts, steps=steps)
    ours, theirs = weights_in(tmp_path / "parts"), weights_in(tmp_path / "whole")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_going_back_is_bounded(
    stage: Callable[..., dict], tmp_path: Path, bad_data: Callable
) -> None:
    bad_data(*range(4, 100))
    with pytest.raises(TrainingError, match=r"the run went back 2 times before; lower train\.opt"):
        go(settings_of(stage, tmp_path / "run"))


def test_without_a_checkpoint_it_cannot_go_back(
    stage: Callable[..., dict], tmp_path: Path, bad_data: Callable
) -> None:
    bad_data(*range(4, 100))
    with pytest.raises(TrainingError, match=r"no checkpoint to go back to; give train\.checkpoint"):
        go(settings_of(stage, tmp_path / "run", checkpoint={}))


def test_rollouts_cannot_be_left_out(stage: Callable[..., dict]) -> None:
    with pytest.raises(SettingError, match=r"train\.spike\.rewinds: grpo learns from rollouts"):
        parse(RunConfig, stage("grpo", spike={}))
    parse(RunConfig, stage("grpo", spike={"rewinds": 0}))
