"""The loss of arXiv 1705.08039: a parent is nearer to its child than other nodes are.

-log( exp(-d(u, v)) / (exp(-d(u, v)) + sum over negatives v' of exp(-d(u, v'))) )
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from culm.batch import Batch, Loss, Term
from culm.graph.embedding import Embedding
from culm.objective.objective import Trained


class EdgeObjective(Trained):
    """Cross-entropy of each edge among its negatives, in nats.

    Metrics: `nearest`, the share of edges whose parent is nearer than all negatives, and
    `curvature` where it is learned.
    """

    def __init__(self, model: Embedding) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Loss:
        points = self.model(batch.tokens)  # (B, 2 + N, D)
        distances = self.model.manifold.distance(points[:, :1], points[:, 1:])
        scores = (-distances).masked_fill(F.pad(batch.extra["known"], (1, 0)), -torch.inf)
        nll = -scores.log_softmax(-1)[:, 0].sum()
        own, others = scores.detach().split((1, scores.shape[1] - 1), 1)
        nearest = (own > others).all(1).double().sum()  # points that coincide earn nothing
        metrics = {"nearest": Term(nearest, "rows")}
        if self.model.config.learned_curvature:
            c = self.model.manifold.c(distances).detach()
            metrics["curvature"] = Term(c * len(batch.tokens), "rows")
        return Loss({"nll": Term(nll, "targets")}, metrics)
