"""Kinds of models times ways to sample, of which the fast tests take a few."""

from collections.abc import Iterable, Sequence

import pytest

from culm.engine.sampling import Sampling


def kinds_and_samplings(kinds: Iterable[str], samplings: Sequence[Sampling]) -> list:
    """The first kind with all, and all kinds with one; the other pairs are slow tests.

    samplings: greedy, plain, nucleus, penalties.
    """
    names = ("greedy", "plain", "nucleus", "penalties")
    first, *_ = kinds = list(kinds)
    return [
        pytest.param(
            kind, sampling, id=f"{kind}-{name}",
            marks=() if name == "nucleus" or kind == first else pytest.mark.slow,
        )
        for kind in kinds
        for name, sampling in zip(names, samplings, strict=True)
    ]  # fmt: skip
