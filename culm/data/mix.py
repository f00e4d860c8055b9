"""The settings of a mixture: how many of a step's rows come from which corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from culm.config import Config, SettingError


class Points(Config):
    """A weight that changes over the steps.

    points: a weight for each step (from 0) at which it changes. between: whether it stays until the
    next of them, or moves there evenly.
    """

    points: dict[NonNegativeInt, NonNegativeFloat]
    between: Literal["constant", "linear"] = "constant"

    @model_validator(mode="after")
    def _complete(self) -> Points:
        if 0 not in self.points:
            raise ValueError("points: step 0 needs a weight too")
        return self

    @property
    def last(self) -> int:
        """The step from which on the weight stays the same."""
        return max(self.points)

    def at(self, steps: np.ndarray) -> np.ndarray:
        """(steps,) the weight at each step."""
        known = sorted(self.points)
        weights = np.array([self.points[step] for step in known])
        if self.between == "linear":
            return np.interp(steps, known, weights)
        return weights[np.searchsorted(known, steps, side="right") - 1]


class MixedCorpus(Config):
    """corpus: a folder that `culm prepare` or an earlier run wrote, such as runs/pretrain/data;
        without it, the run's own text (path, prepared or tasks).
    weight: rows of it, relative to the weights of the others; a number, or points over the steps.
    epochs: in place of weights: how often it is read while a corpus with 1 is read once.
    max_epochs: refuse a run that would read it more often than this.
    """

    corpus: Path | None = None
    weight: NonNegativeFloat | Points | None = None
    epochs: PositiveFloat | None = None
    max_epochs: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_share(self) -> MixedCorpus:
        if self.weight is not None and self.epochs is not None:
            raise ValueError("epochs: give a weight or epochs, not both")
        return self

    @property
    def last(self) -> int:
        """The step from which on its weight stays the same."""
        return self.weight.last if isinstance(self.weight, Points) else 0

    def weights(self, steps: np.ndarray) -> np.ndarray:
        """(steps,) its weight at each step, where it has one."""
        assert self.weight is not None
        if isinstance(self.weight, Points):
            return self.weight.at(steps)
        return np.full(len(steps), self.weight)


def check_mix(mix: Sequence[MixedCorpus], own: bool) -> None:
    """own: whether the run has text of its own.

    Raises:
        ValueError: the entries do not go together.
    """
    if not mix:
        return
    if len(mix) < 2:
        raise ValueError("mix: one corpus is no mixture; add another, or use prepared")
    alone = [place for place, one in enumerate(mix) if one.corpus is None]
    if own and len(alone) != 1:
        raise ValueError(
            f"mix: {len(alone)} entries have no corpus; exactly one of them stands for the run's "
            "own text"
        )
    if alone and not own:
        raise ValueError(f"mix[{alone[0]}].corpus: this setting is needed, as there is no path")
    named = [one.corpus.resolve() for one in mix if one.corpus is not None]
    if len(set(named)) < len(named):
        twice = next(path for path in named if named.count(path) > 1)
        raise ValueError(f"mix: {twice} is named twice; give it once, with the sum of the weights")
    weighed = [one.weight is not None for one in mix]
    if any(weighed) and not all(weighed):
        raise ValueError(f"mix[{weighed.index(False)}].weight: all entries need a weight, or none")
    _check_weights(mix)


def _check_weights(mix: Sequence[MixedCorpus]) -> None:
    if mix[0].weight is None:
        return
    table = _table(mix)
    if (empty := np.flatnonzero(table.sum(1) == 0)).size:
        raise ValueError(f"mix: all weights are 0 at step {int(empty[0])}")
    if (unread := np.flatnonzero(table.sum(0) == 0)).size:
        raise ValueError(f"mix[{int(unread[0])}].weight: it is 0 at every step; leave it out")


def _table(mix: Sequence[MixedCorpus]) -> np.ndarray:
    steps = np.arange(max(one.last for one in mix) + 1)
    return np.stack([one.weights(steps) for one in mix], axis=1)


def weights_of(mix: Sequence[MixedCorpus], rows: Sequence[float], temperature: float) -> np.ndarray:
    """(steps, corpora) fp64; the last row holds for all later steps too.

    rows: of each corpus. Without weights, the share of a corpus is epochs * rows^(1 / temperature):
    with a temperature of 1 all are read equally often, with a higher one small corpora more often.

    Raises:
        SettingError: a number is so large or small that a weight is not finite or 0.
    """
    if mix[0].weight is not None:
        return _table(mix)
    largest = max(rows)
    weights = [
        (one.epochs or 1.0) * (count / largest) ** (1 / temperature)
        for one, count in zip(mix, rows, strict=True)
    ]
    if not all(0 < weight < np.inf for weight in weights):
        raise SettingError(
            f"data.temperature: {temperature:g} leaves nothing of a corpus; use a higher one"
        )
    return np.array([weights])
