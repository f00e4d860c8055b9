"""Whole rows of weighted corpora: exact over the run, whatever the step."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from culm.config import SettingError, parse
from culm.data.apportion import Apportionment
from culm.data.batch_ramp import BatchSizes
from culm.data.mix import MixedCorpus, Points, weights_of
from culm.data.settings import DataConfig

WEIGHTS = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=9)
STEP = st.integers(0, 10**9)


def forks(corpora: int) -> int:
    """On the way to a leaf, at most."""
    return (corpora - 1).bit_length()


@settings(deadline=None, max_examples=60)
@given(WEIGHTS, st.integers(1, 512), STEP)
def test_counts_are_the_exact_shares_to_rounding(weights, rows, step) -> None:
    """Also a thousand million steps later, and every step gives each place to one corpus."""
    apportionment = Apportionment(np.array([weights]), BatchSizes(rows))
    before, after = apportionment.before(step), apportionment.before(step + 1)
    total = sum(map(Fraction, weights))
    for weight, count, then in zip(weights, before, after, strict=True):
        # The share of a fork is rounded to fp64 once; so far away that is a few rows.
        drift = step * rows * 2**-50
        exact = Fraction(weight) / total * step * rows
        assert abs(count - exact) <= 0.5 * forks(len(weights)) + drift
        assert 0 <= then - count <= rows
    assert sum(before) == step * rows


CHANGES = st.lists(
    st.lists(st.floats(0, 10), min_size=3, max_size=3).filter(lambda row: sum(row) > 1e-6),
    min_size=2,
    max_size=200,
)


@settings(deadline=None, max_examples=60)
@given(CHANGES, st.integers(1, 64))
def test_weights_may_change_at_every_step(table, rows) -> None:
    weights = np.array(table)
    apportionment = Apportionment(weights, BatchSizes(rows))
    every = [apportionment.before(step) for step in range(len(table) + 30)]
    shares = weights / weights.sum(1, keepdims=True)
    exact = np.zeros(3)
    for step, (now, then) in enumerate(pairwise(every)):
        # The error does not grow with the steps, however often the weights change.
        assert np.all(np.abs(np.array(now) - exact) <= 2 + 1e-6)
        assert sum(then) - sum(now) == rows
        assert min(np.subtract(then, now)) >= 0
        exact += rows * shares[min(step, len(table) - 1)]
        assert apportionment.shares(step) == pytest.approx(shares[min(step, len(table) - 1)])


def test_a_corpus_without_weight_has_no_row() -> None:
    mix = [
        MixedCorpus(corpus="a", weight=3),
        MixedCorpus(corpus="b", weight=Points(points={0: 0, 10: 1})),
    ]
    apportionment = Apportionment(weights_of(mix, [1, 1], 1.0), BatchSizes(8))
    assert apportionment.before(10) == [80, 0]
    assert apportionment.before(20) == [140, 20]


def test_a_weight_moves_evenly() -> None:
    weight = Points(points={0: 1.0, 4: 3.0}, between="linear")
    assert weight.at(np.array([0, 1, 2, 4, 9])).tolist() == [1.0, 1.5, 2.0, 3.0, 3.0]
    constant = Points(points={"0": 1.0, 4: 3.0})
    assert constant.at(np.array([0, 3, 4, 9])).tolist() == [1.0, 1.0, 3.0, 3.0]


def test_sizes_epochs_and_temperature() -> None:
    """arXiv 1901.07291: a share is n^(1/T) over the sum of these."""
    mix = [MixedCorpus(corpus="a"), MixedCorpus(corpus="b", epochs=2)]

    def share(temperature: float) -> float:
        [weights] = weights_of(mix, [900, 100], temperature)
        return weights[1] / weights.sum()

    assert share(1.0) == pytest.approx(200 / 1100)
    assert share(2.0) == pytest.approx(20 / 50)
    with pytest.raises(SettingError, match=r"data\.temperature: 0\.0001 leaves nothing"):
        share(1e-4)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ([{"corpus": "a"}], r"mix: one corpus is no mixture"),
        ([{"corpus": "a"}, {}], r"mix\[1\]\.corpus: this setting is needed"),
        ([{"corpus": "a"}, {"corpus": "./a"}], r"mix: .*a is named twice"),
        ([{"corpus": "a", "weight": 1}, {"corpus": "b"}], r"mix\[1\]\.weight: all entries need"),
        (
            [{"corpus": "a", "weight": 0}, {"corpus": "b", "weight": 1}],
            r"mix\[0\]\.weight: it is 0",
        ),
        (
            [
                {"corpus": "a", "weight": {"points": {0: 1, 5: 0}}},
                {"corpus": "b", "weight": {"points": {0: 1, 5: 0, 7: 1}}},
            ],
            r"mix: all weights are 0 at step 5",
        ),
        ([{"corpus": "a", "weight": {"points": {3: 1}}}, {"corpus": "b", "weight": 1}], "step 0"),
        ([{"corpus": "a", "weight": 1, "epochs": 1}, {"corpus": "b"}], "a weight or epochs, not"),
        ([{"corpus": "a", "weight": -1}, {"corpus": "b", "weight": 1}], r"mix\[0\]\.weight"),
    ],
)
def test_entries_that_do_not_go_together(mix, message) -> None:
    with pytest.raises(SettingError, match=message):
        parse(DataConfig, {"mix": mix})
