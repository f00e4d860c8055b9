"""Curves of a million points become as many as a screen can show, with their extremes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Curve(NamedTuple):
    """x: the last one of each bucket. mean, low, high: of the values in it."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def plain(x: np.ndarray, y: np.ndarray) -> Curve:
    """The points whose x and y are finite."""
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    return Curve(x, y, y, y)


def reduced(curve: Curve, buckets: int, log: bool = False) -> Curve:
    """At most `buckets` points, each with the extremes of what it stands for; short curves stay.

    log: buckets are as wide as each other on a logarithmic axis of x, which must be positive.
    """
    count = len(curve.x)
    if count <= buckets:
        return curve
    place = np.log(curve.x) if log else curve.x
    edges = np.linspace(place[0], place[-1], buckets + 1)[:-1]
    starts = np.unique(np.searchsorted(place, edges))
    sizes = np.diff(np.append(starts, count))
    return Curve(
        curve.x[np.append(starts[1:], count) - 1],
        np.add.reduceat(curve.mean, starts) / sizes,
        np.minimum.reduceat(curve.low, starts),
        np.maximum.reduceat(curve.high, starts),
    )


def within(curve: Curve, start: float, end: float) -> Curve:
    """The part whose x is in [start, end], with a point more on each side, so that lines reach the
    edges.
    """
    first = max(int(np.searchsorted(curve.x, start, "left")) - 1, 0)
    last = int(np.searchsorted(curve.x, end, "right")) + 1
    return Curve(*(part[first:last] for part in curve))


def smoothed(curve: Curve, share: float) -> Curve:
    """The mean is a running one over this share of the points; the extremes stay."""
    count = len(curve.x)
    half = int(share * count / 2)
    if half < 1:
        return curve
    sums = np.concatenate([[0.0], np.cumsum(curve.mean)])
    at = np.arange(count)
    start, end = np.maximum(at - half, 0), np.minimum(at + half + 1, count)
    return curve._replace(mean=(sums[end] - sums[start]) / (end - start))


def merged(curves: list[Curve]) -> Curve:
    """One curve of several over the same x: their mean, the least and the greatest."""
    return Curve(
        curves[0].x,
        np.mean([one.mean for one in curves], axis=0),
        np.min([one.low for one in curves], axis=0),
        np.max([one.high for one in curves], axis=0),
    )
