"""Schedules at their ends and joints."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from culm.optim.schedule import WSD, Constant, Cosine, Cyclic, InverseSqrt, LinearDecay


def test_cosine() -> None:
    schedule = Cosine(warmup=0.1, final=0.1)
    factors = [schedule.factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)  # the first step learns
    assert factors[9] == 1.0
    assert factors[10] == 1.0  # cos(0)
    assert factors[55] == pytest.approx(0.55)  # half-way between 1 and 0.1
    assert factors[99] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 89 / 90)))
    assert schedule.factor(100, 100) == pytest.approx(0.1)


def test_wsd() -> None:
    schedule = WSD(warmup=0.1, decay=0.2, final=0.0)
    factors = [schedule.factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert set(factors[9:80]) == {1.0}
    assert factors[80] == pytest.approx(1 - math.sqrt(1 / 21))
    assert factors[99] == pytest.approx(1 - math.sqrt(20 / 21))
    assert factors[99] > 0


def test_constant() -> None:
    assert [Constant(warmup=0.5).factor(step, 4) for step in range(4)] == [0.5, 1, 1, 1]
    assert [Constant().factor(step, 3) for step in range(3)] == [1, 1, 1]


def test_linear() -> None:
    factors = [LinearDecay(warmup=0.1, final=0.2).factor(step, 100) for step in range(100)]
    assert factors[:2] == pytest.approx([0.1, 0.2])
    assert factors[9] == 1.0
    falls = [a - b for a, b in pairwise(factors[10:])]
    assert falls == pytest.approx([0.8 / 91] * 89)
    assert factors[99] == pytest.approx(0.2 + 0.8 / 91)
    assert LinearDecay().factor(99, 100) > 0


def test_inverse_sqrt_does_not_depend_on_the_length_of_a_run() -> None:
    schedule = InverseSqrt(warmup_steps=10)
    factors = [schedule.factor(step, 1000) for step in range(100)]
    assert factors == [schedule.factor(step, 5) for step in range(100)]
    assert factors[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert factors[39] == pytest.approx(0.5)


def test_cyclic_starts_anew() -> None:
    factors = [Cyclic(warmup=0.1, cycles=3, final=0.1).factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert [n for n, factor in enumerate(factors) if factor > 0.999] == [9, 10, 40, 70]
    assert factors[40:70] == pytest.approx(factors[10:40]) == factors[70:]
    assert factors[25] == pytest.approx(0.55)


@given(
    steps=st.integers(1, 300),
    warmup=st.floats(0, 0.99),
    decay=st.floats(0.01, 1),
    final=st.floats(0, 1),
)
def test_factors_rise_then_fall_within_bounds(
    steps: int, warmup: float, decay: float, final: float
) -> None:
    for schedule in (
        Cosine(warmup=warmup, final=final),
        WSD(warmup=warmup, decay=decay, final=final),
        LinearDecay(warmup=warmup, final=final),
        Constant(warmup=warmup),
        InverseSqrt(warmup_steps=1 + int(warmup * 100)),
        Cyclic(warmup=warmup, cycles=1, final=final),
    ):
        factors = [schedule.factor(step, steps) for step in range(steps)]
        assert all(0 < factor <= 1 for factor in factors)
        top = factors.index(max(factors))
        assert factors[: top + 1] == sorted(factors[: top + 1])
        assert factors[top:] == sorted(factors[top:], reverse=True)


@pytest.mark.parametrize("schedule", [Cosine(final=0.1), WSD(final=0.1), LinearDecay(final=0.1)])
def test_final_is_the_rate_of_a_step_after_the_last(schedule: Cosine | WSD | LinearDecay) -> None:
    """So the last step learns too where it is 0."""
    assert schedule.factor(99, 100) > 0.1
    assert schedule.factor(100, 100) == pytest.approx(0.1)
