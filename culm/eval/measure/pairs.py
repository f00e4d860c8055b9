"""How often a reward model prefers the better answer."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from typing import Any, Literal

import torch
from pydantic import PositiveInt

from culm.eval.interval import wilson
from culm.eval.measure.measure import MeasureConfig, Subject
from culm.model.context import Context


class Pairs(MeasureConfig):
    """Results of held-out pairs: `accuracy`, the share whose chosen answer has the higher reward,
    with a 95 % interval, and `margin`, the mean difference of the two rewards.

    tokens: learned tokens of the pairs that are scored, spread evenly over the corpus.
    """

    kind: Literal["pairs"] = "pairs"
    tokens: PositiveInt = 50_000

    def check(self, subject: Subject) -> None:
        """Held-out pairs must have tokens that are learned, which their rows check."""
        subject.held_out()

    @torch.inference_mode()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """Nothing without held-out pairs, or of a model that gives no rewards."""
        rows, model, ranks = subject.held_out(), subject.model, subject.ranks
        if rows is None or model.config.head != "scalar":
            return {}
        right, margin, pairs = 0.0, 0.0, 0
        for batch in islice(rows.sample(self.tokens), ranks.rank, None, ranks.count):
            batch = batch.to(model.device)
            scores = model.scores(batch.tokens, Context(batch.positions, batch.documents))
            rewards = scores.gather(1, batch.last[:, None])[:, 0]
            differences = rewards[0::2] - rewards[1::2]
            right += float((differences > 0).sum())
            margin += float(differences.double().sum())
            pairs += len(differences)
        right, margin, total = subject.sum([right, margin, pairs])
        return {"accuracy": asdict(wilson(right, round(total))), "margin": margin / total}
