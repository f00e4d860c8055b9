"""Numbers in readable form."""

from __future__ import annotations

from collections.abc import Sequence

Scale = Sequence[tuple[float, str]]

COUNTS: Scale = ((1e12, " trillion"), (1e9, " billion"), (1e6, " million"))
FLOPS: Scale = (
    (1e18, " EFLOP"),
    (1e15, " PFLOP"),
    (1e12, " TFLOP"),
    (1e9, " GFLOP"),
    (1e6, " MFLOP"),
)
SIZES: Scale = ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"))
TIMES: Scale = ((86400, " days"), (3600, " hours"), (60, " minutes"))


def count(number: float) -> str:
    """`937`, `4.0 million`."""
    return _scaled(number, COUNTS, "")


def flops(number: float) -> str:
    """`8.7 MFLOP`."""
    return _scaled(number, FLOPS, " FLOP")


def size(number: float) -> str:
    """`12.3 GB`, in powers of ten."""
    return _scaled(number, SIZES, " bytes")


def duration(seconds: float) -> str:
    """`45 seconds`, `2.5 minutes`."""
    return _scaled(seconds, TIMES, " seconds")


def _scaled(number: float, scale: Scale, unit: str) -> str:
    for least, name in scale:
        if number >= least:
            return f"{number / least:,.1f}{name}"
    return f"{number:,.0f}{unit}"
