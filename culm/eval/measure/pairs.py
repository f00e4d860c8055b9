"""How well a reward model judges held-out answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from culm.batch import Batch, Reads
from culm.eval.interval import wilson
from culm.eval.measure.measure import MeasureConfig, Subject
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.reward import last_scores, rankings_of
from culm.objective.reward_losses import better_than

SUMS: Mapping[Reads, tuple[str, ...]] = {
    "pairs": ("right", "margin", "count"),
    "rankings": ("right", "margin", "count"),
    "labels": ("squares", "r", "l", "rr", "ll", "rl", "count"),
    "steps": ("right", "count"),
}


class Pairs(MeasureConfig):
    """Results of held-out pairs: `accuracy`, the share whose chosen answer has the higher reward,
    with a 95 % interval, and `margin`, the mean difference of the two rewards.

    Of rankings the same, over all pairs of answers with other scores; of labelled steps `accuracy`;
    of answers with a number `error`, the mean squared one, and `correlation` (Pearson) where
    both vary.

    tokens: learned tokens of the rows that are scored, spread evenly over the corpus.
    """

    kind: Literal["pairs"] = "pairs"
    tokens: PositiveInt = 50_000

    def check(self, subject: Subject) -> None:
        """Held-out rows must have tokens that are learned, which they check."""
        subject.held_out()

    @torch.inference_mode()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """Nothing without held-out rows, or of a model that gives no rewards."""
        rows, model, ranks = subject.held_out(), subject.model, subject.ranks
        if rows is None or model.config.head != "scalar" or rows.gives not in SUMS:
            return {}
        own = Counter[str]()
        for batch in islice(rows.sample(self.tokens), ranks.rank, None, ranks.count):
            own.update(_sums(model, batch.to(model.device), rows.gives))
        names = SUMS[rows.gives]
        sums = dict(zip(names, subject.sum([own[name] for name in names]), strict=True))
        if rows.gives == "labels":
            return _of_labels(sums)
        found = {"accuracy": asdict(wilson(sums["right"], round(sums["count"])))}
        return (
            found if rows.gives == "steps" else found | {"margin": sums["margin"] / sums["count"]}
        )


def _sums(model: Transformer, batch: Batch, gives: Reads) -> dict[str, float]:
    """Of one batch, by the names of `SUMS`."""
    scores = model.head_scores(batch.tokens, Context(batch.positions, batch.documents))
    if gives == "steps":
        labels = batch.extra["label"]
        known = ~labels.isnan()
        right = (scores.mean(-1) > 0) == (labels >= 0.5)
        return {"right": _sum(right[known]), "count": _sum(known)}
    rewards = last_scores(scores, batch).mean(-1)
    if gives == "labels":
        labels = batch.extra["label"]
        parts = {"r": rewards, "l": labels, "rr": rewards**2, "ll": labels**2}
        parts |= {"rl": rewards * labels, "squares": (rewards - labels) ** 2}
        return {name: _sum(part) for name, part in parts.items()} | {"count": float(len(labels))}
    if gives == "pairs":
        differences = rewards[0::2] - rewards[1::2]
    else:
        better = better_than(batch.extra["score"], rankings_of(batch))
        differences = (rewards[:, None] - rewards[None, :])[better]
    return {
        "right": _sum(differences > 0), "margin": _sum(differences),
        "count": float(len(differences)),
    }  # fmt: skip


def _of_labels(sums: Mapping[str, float]) -> dict[str, Any]:
    n = sums["count"]
    together = sums["rl"] - sums["r"] * sums["l"] / n
    spread = (sums["rr"] - sums["r"] ** 2 / n) * (sums["ll"] - sums["l"] ** 2 / n)
    known = spread > 1e-12 * max(sums["rr"] * sums["ll"], 1e-300)  # beyond rounding
    return {"error": sums["squares"] / n} | (
        {"correlation": together / spread**0.5} if known else {}
    )


def _sum(values: Tensor) -> float:
    return float(values.double().sum())
