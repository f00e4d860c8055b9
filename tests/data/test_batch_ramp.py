"""Batches that grow: which rows each step reads, where its rate is, and what is refused."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stages import untimed

from culm.config import SettingError, parse
from culm.data.apportion import Apportionment
from culm.data.batch_ramp import BatchRamp, BatchSizes
from culm.files import read_lines
from culm.optim.schedule import WSD, Cosine
from culm.parallel.ranks import Ranks
from culm.run.assemble import assemble, training_batches
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.run.update import rates_of
from culm.train.rates import ByRows
from culm.train.spikes import SpikeConfig, Spikes, WithoutSpikes
from culm.verbs.plan import show_plan

RAMP = BatchRamp(start=4, increment=4, steps=6)


def test_increments_come_at_equal_distances() -> None:
    sizes = BatchSizes(16, RAMP)
    assert [sizes.of(step) for step in range(9)] == [4, 4, 8, 8, 12, 12, 16, 16, 16]
    assert [sizes.before(step) for step in range(9)] == [0, 4, 8, 16, 24, 36, 48, 64, 80]
    assert sizes.before(1000) == 48 + 16 * 994
    assert [BatchSizes(16).before(step) for step in range(3)] == [0, 16, 32]
    uneven = BatchSizes(20, BatchRamp(start=5, increment=5, steps=7))
    assert [uneven.of(step) for step in range(8)] == [5, 5, 5, 10, 10, 15, 15, 20]


@pytest.mark.parametrize("schedule", [Cosine(), WSD()])
def test_rates_are_those_of_as_many_rows(schedule) -> None:
    """68 rows in 8 steps are 4.25 steps of 16."""
    rates = ByRows(schedule, BatchSizes(16, RAMP))
    for step, rows in enumerate([0, 4, 8, 16, 24, 36, 48, 64]):
        assert rates.factor(step, 8) == schedule.factor(rows / 16, 80 / 16)
    assert ByRows(schedule, BatchSizes(16)).factor(3, 8) == schedule.factor(3, 8)


def test_shares_of_a_mixture_stay_exact() -> None:
    """With a weight that changes within the ramp."""
    weights = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 3.0]])
    sizes = BatchSizes(16, RAMP)
    apportionment = Apportionment(weights, sizes)
    for step in range(12):
        before = apportionment.before(step)
        assert sum(before) == sizes.before(step)
        even = sizes.before(min(step, 2)) / 2
        assert abs(before[0] - even - (sizes.before(step) - 2 * even) / 4) <= 1


def settings_of(stage: Callable[..., dict], folder: Path, **more: object) -> dict:
    ramp = {"start": 2, "increment": 2, "steps": 4}
    settings = stage("pretrain", steps=6, batch_size=6, batch_ramp=ramp, **more)
    settings["train"] |= {"schedule": "cosine", "checkpoint": {"every_steps": 2}}
    return {**settings, "folder": str(folder)}


def test_a_run_reads_more_and_more(stage: Callable[..., dict], tmp_path: Path) -> None:
    """On any number of ranks."""
    config = parse(RunConfig, settings_of(stage, tmp_path / "one"))
    train(config)
    lines = read_lines(tmp_path / "one" / "metrics.jsonl")
    tokens = np.diff([0, *(line["tokens"] for line in lines)])
    assert tokens[0] == pytest.approx(2 * 64, rel=0.1)
    assert tokens[2:4] == pytest.approx([4 * 64] * 2, rel=0.1)
    assert tokens[4:] == pytest.approx([6 * 64] * 2, rel=0.1)
    whole, *parts = (
        training_batches(assemble(config, tmp_path / "one", torch.device("cpu"), ranks))
        for ranks in (Ranks(), Ranks(0, 2), Ranks(1, 2))
    )
    read = Counter()
    for step in range(6):
        rows = [row for one in whole.step(step) for row in one.tokens.tolist()]
        assert len(rows) == whole.sizes.of(step)
        assert rows == [r for part in parts for one in part.step(step) for r in one.tokens.tolist()]
        read.update(map(tuple, rows))
    assert read.total() == whole.sizes.before(6)
    other = settings_of(stage, tmp_path / "one")
    with pytest.raises(SettingError, match=r"train\.batch_ramp"):
        train(parse(RunConfig, {**other, "train": {**other["train"], "batch_ramp": None}}))


def test_a_run_resumes_within_a_ramp(stage: Callable[..., dict], tmp_path: Path) -> None:
    for folder, ends in (("one", (6,)), ("two", (3, 6))):
        for steps in ends:
            settings = settings_of(stage, tmp_path / folder)
            settings["train"] |= {"schedule": "constant", "steps": steps}
            train(parse(RunConfig, settings))
    one, two = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [untimed(line) for line in one] == [untimed(line) for line in two]


def test_after_a_rewind_the_rate_is_that_of_the_rows(stage, tmp_path: Path) -> None:
    """A step has the batch size and the rate of one step of a run that left nothing out."""
    train = parse(RunConfig, settings_of(stage, tmp_path / "run")).train
    loader = SimpleNamespace(step=train.batch_sizes.of)
    batches = WithoutSpikes(loader, Spikes(SpikeConfig()))
    rates = rates_of(train, batches)
    plain = [(batches.step(n), rates.factor(n, 9)) for n in range(9)]
    batches.passed = 2
    assert [(batches.step(n), rates.factor(n, 7)) for n in range(7)] == plain[2:]
    assert len({size for size, _ in plain}) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"batch_size": 9}, "increments of 2 do not lead from start=2 to batch_size=9"),
        ({"batch_size": 2}, r"start: 2 is not less than batch_size=2"),
    ],
)
def test_what_does_not_divide_is_refused(more: dict, message: str, stage, tmp_path: Path) -> None:
    settings = settings_of(stage, tmp_path / "run")
    settings["train"] |= more
    with pytest.raises(SettingError, match=message):
        parse(RunConfig, settings)
    with pytest.raises(SettingError, match="do not both divide over 4 ranks; use multiples of 4"):
        BatchSizes(8, BatchRamp(start=4, increment=2, steps=3)).check(4)
    rollouts = stage("grpo", batch_ramp={"start": 4, "increment": 4, "steps": 2})
    with pytest.raises(SettingError, match="grpo learns from rollouts"):
        parse(RunConfig, rollouts)


@pytest.mark.slow
def test_a_plan_counts_the_rows_of_a_ramp(stage, tmp_path: Path, capsys) -> None:
    """24 rows of 64 tokens in 6 steps, and not 36."""
    show_plan(parse(RunConfig, settings_of(stage, tmp_path / "run")), {})
    shown = " ".join(capsys.readouterr().out.split())
    assert "384 a step, 1,536 in 6 steps" in shown or "384 a step, 1536 in 6 steps" in shown


@pytest.mark.parametrize(
    ("start", "increment", "steps"), [(2, 2, 7), (1, 3, 40), (4, 12, 1), (1, 1, 3)]
)
def test_rows_before_a_step_are_those_of_the_steps(start: int, increment: int, steps: int) -> None:
    sizes = BatchSizes(16, BatchRamp(start=start, increment=increment, steps=steps))
    for step in range(60):
        assert sizes.before(step) == sum(map(sizes.of, range(step)))
    assert sizes.distinct == sorted({sizes.of(step) for step in range(60)})


def test_a_ramp_may_be_of_any_length() -> None:
    sizes = BatchSizes(16, BatchRamp(start=2, increment=2, steps=10**15))
    assert sizes.before(10**9) == 2 * 10**9
    assert sizes.distinct == list(range(2, 17, 2))
