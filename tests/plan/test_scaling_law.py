"""The scaling law: known laws are found again, and intervals hold what they say."""

import math

import pytest
import torch

from culm.plan.scaling import Point, effective_tokens, fit, lowest

KNOWN = {"E": 0.9, "A": 40.0, "B": 120.0, "alpha": 0.3, "beta": 0.42}


def loss_of(parameters, tokens, E, A, B, alpha, beta):  # noqa: N803
    return E + A / parameters**alpha + B / tokens**beta


def points(noise=0.0, seed=0, sizes=(1e5, 4e5, 16e5), lengths=(1e6, 4e6, 16e6), law=None):
    drawn = torch.Generator().manual_seed(seed)
    return [
        Point(n, d, loss_of(n, d, **(law or KNOWN))
              * math.exp(noise * float(torch.randn((), generator=drawn))))
        for n in sizes for d in lengths
    ]  # fmt: skip


def test_a_known_law_is_found_again():
    sizes, lengths = [1e4 * 4**i for i in range(6)], [1e5 * 4**i for i in range(6)]
    law = fit(points(sizes=sizes, lengths=lengths), noise=1e-5)
    assert law.alpha == pytest.approx(KNOWN["alpha"], abs=0.005)
    assert law.beta == pytest.approx(KNOWN["beta"], abs=0.005)
    assert law.loss(1e9, 2e10) == pytest.approx(loss_of(1e9, 2e10, **KNOWN), rel=0.01)
    parameters, tokens = law.optimum(1e18)
    share = KNOWN["beta"] / (KNOWN["alpha"] + KNOWN["beta"])
    scale = KNOWN["alpha"] * KNOWN["A"] / (KNOWN["beta"] * KNOWN["B"])
    closed = scale ** (1 / (KNOWN["alpha"] + KNOWN["beta"])) * (1e18 / 6) ** share
    assert parameters == pytest.approx(closed, rel=0.05)
    assert 6 * parameters * tokens == pytest.approx(1e18)


def test_an_outlier_moves_the_fit_little():
    clean = points()
    spoiled = [*clean[:4], Point(clean[4].parameters, clean[4].tokens, 1.5 * clean[4].loss)]
    spoiled += clean[5:]
    assert fit(spoiled).loss(1e7, 1e8) == pytest.approx(fit(clean).loss(1e7, 1e8), rel=0.03)


@pytest.mark.slow
def test_intervals_hold_runs_that_are_16_times_longer_and_larger():
    held = 0
    for seed in range(20):
        drawn = torch.Generator().manual_seed(100 + seed)
        e, alpha, beta = torch.randn(3, generator=drawn).tolist()
        law = {**KNOWN, "E": 0.6 * math.exp(0.3 * e), "alpha": 0.35 + 0.05 * alpha,
               "beta": 0.37 + 0.05 * beta}  # fmt: skip
        low, high = fit(points(0.01, seed, law=law)).interval(16e5 * 16, 16e6 * 16)
        held += low < loss_of(16e5 * 16, 16e6 * 16, **law) < high
    assert held >= 16


def test_an_interval_grows_with_the_distance():
    law = fit(points(0.01))
    near, far = law.interval(16e5, 16e6), law.interval(1e9, 2e10)
    assert far[1] / far[0] > 2 * near[1] / near[0] - 1
    assert near[0] < law.loss(16e5, 16e6) < near[1]


def test_repeated_text_is_worth_less():
    assert effective_tokens(5e5, 1e6) == 5e5
    assert effective_tokens(4e6, 1e6) == pytest.approx(3.73e6, rel=0.01)  # 4 epochs: hardly less
    assert effective_tokens(1e9, 1e6) == pytest.approx(16.4e6, rel=0.01)


def test_the_rate_is_at_the_vertex_or_at_an_end():
    assert lowest([1, 3, 9], [2.0, 1.0, 2.0]) == pytest.approx(3)
    assert 3 < lowest([1, 3, 9], [2.0, 1.0, 1.5]) < 9
    assert lowest([1, 3, 9], [3.0, 2.0, 1.0]) == 9


def test_runs_that_leave_the_law_of_shorter_ones_widen_the_interval():
    clean = points(0.002)
    bent = [Point(p.parameters, p.tokens, p.loss * (0.9 if p.tokens == 16e6 else 1)) for p in clean]
    assert fit(bent).drift > 0.02 > fit(clean).drift
    widths = [high / low for low, high in (fit(p).interval(4e5, 16e8) for p in (clean, bent))]
    assert widths[1] > 1.3 * widths[0]
