"""How well distances find what belongs to a query: mean rank and mean average precision."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Ranking(NamedTuple):
    """Of one query. ranks: (P,) of each item that belongs to it among all that do not, from 1.

    average_precision: the mean, over these items by distance, of the share of items up to it that
    belong to the query.
    """

    ranks: np.ndarray
    average_precision: float


def ranking(distances: np.ndarray, query: int, wanted: np.ndarray) -> Ranking:
    """distances: (N,) from the query to all items; its own place is left out. wanted: (P,) items
    that belong to it.

    Items at equal distance come in the worst order, so points that coincide earn nothing.
    """
    right = np.sort(distances[wanted])
    wrong = np.delete(distances, np.append(wanted, query))
    # Of each wrong item, how many right ones are nearer; then how many wrong ones each right one
    # has at its distance or nearer.
    before = np.searchsorted(right, wrong, side="left")
    nearer = np.bincount(before, minlength=len(right) + 1).cumsum()[: len(right)]
    places = np.arange(1, len(right) + 1)
    return Ranking(nearer + 1, float((places / (nearer + places)).mean()))
