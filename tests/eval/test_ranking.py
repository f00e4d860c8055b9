"""Mean rank and average precision, by hand and against a count without tricks."""

import numpy as np
import pytest

from culm.eval.ranking import ranking


def test_by_hand() -> None:
    """The query is item 0; by distance: 3 (right), 1, 4 (right), 2."""
    found = ranking(np.array([0.0, 2.0, 9.0, 1.0, 3.0]), 0, np.array([3, 4]))
    assert found.ranks.tolist() == [1, 2]
    assert found.average_precision == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_equal_distances_are_the_worst_order() -> None:
    found = ranking(np.zeros(10), 0, np.array([1]))
    assert found.ranks.tolist() == [9]
    assert found.average_precision == pytest.approx(1 / 9)


def test_against_a_plain_count() -> None:
    chance = np.random.default_rng(0)
    for _ in range(20):
        distances = chance.random(30)
        query, *wanted = chance.choice(30, 6, replace=False)
        order = [item for item in np.argsort(distances) if item != query]
        hits, precisions, ranks, wrong = 0, [], [], 0
        for place, item in enumerate(order, start=1):
            if item in wanted:
                hits += 1
                precisions.append(hits / place)
                ranks.append(wrong + 1)
            else:
                wrong += 1
        found = ranking(distances, int(query), np.array(wanted))
        assert found.ranks.tolist() == ranks
        assert found.average_precision == pytest.approx(np.mean(precisions))
