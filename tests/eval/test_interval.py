"""Student's interval of a mean over few seeds."""

import math

import pytest
import torch

from culm.eval.interval import student


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (10, 2.2281), (11, 2.2010), (40, 2.0211)]
)
def test_the_half_width_is_that_of_the_tables(freedom: int, quantile: float) -> None:
    values = torch.randn(freedom + 1, generator=torch.Generator().manual_seed(freedom)).double()
    found = student(values.tolist())
    half = quantile * float(values.std()) / math.sqrt(freedom + 1)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.high - found.value == pytest.approx(half, rel=2e-3)
    assert found.value - found.low == pytest.approx(half, rel=2e-3)


def test_one_value_has_no_interval() -> None:
    assert student([0.5]).high == math.inf
