"""The plan against the peak of PyTorch's CPU allocator, in the cases of `bench/memory.py`."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import memory as bench

from culm.config import parse
from culm.run.train_settings import TrainConfig


@pytest.mark.slow
@pytest.mark.parametrize("name", bench.CASES)
def test_the_peak_is_planned_within_one_percent(name):
    model, settings = bench.CASES[name]
    train = parse(TrainConfig, bench.GIVEN | settings)
    planned = bench.planned(bench.MODELS[model], train)
    measured = bench.measured(bench.MODELS[model], train)
    assert planned == pytest.approx(measured, rel=bench.limit_of(name))
