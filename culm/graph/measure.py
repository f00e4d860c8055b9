"""Reconstruction: whether the nearest nodes of a node are its parents (arXiv 1705.08039)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt

from culm.config import Config
from culm.eval.interval import bootstrap
from culm.eval.ranking import Ranking, ranking
from culm.graph.edges import Graph
from culm.graph.embedding import Embedding

AT_ONCE = 1 << 22  # distances that are computed at once


class Reconstruction(Config):
    """Results: `map`, the mean average precision over nodes with parents, with a 95 % interval over
    nodes; `mean_rank` of a parent among all nodes that are none.

    every_steps: between two evaluations; one follows the last step anyway. nodes: how many are
    queries, chosen by the seed; all, unless given.
    """

    every_steps: PositiveInt | None = None
    nodes: PositiveInt | None = None
    seed: NonNegativeInt = 1

    def measure(self, model: Embedding, graph: Graph) -> dict[str, Any]:
        found = self.rankings(model, graph)
        precision = bootstrap([one.average_precision for one in found], self.seed)
        ranks = np.concatenate([one.ranks for one in found])
        return {"map": asdict(precision), "mean_rank": float(ranks.mean())}

    @torch.no_grad()
    def rankings(self, model: Embedding, graph: Graph) -> list[Ranking]:
        """One for each query, in the order of the nodes."""
        order = np.argsort(graph.edges[:, 0], kind="stable")
        children, starts = np.unique(graph.edges[order, 0], return_index=True)
        parents = dict(
            zip(children.tolist(), np.split(graph.edges[order, 1], starts[1:]), strict=True)
        )
        queries = children
        if self.nodes is not None and self.nodes < len(children):
            chance = np.random.default_rng(self.seed)
            queries = np.sort(chance.choice(children, self.nodes, replace=False))
        every = model(torch.arange(len(graph.names), device=model.points.device))
        size = max(1, AT_ONCE // (len(every) * every.shape[1]))
        found = []
        for start in range(0, len(queries), size):
            part = queries[start : start + size]
            here = every[torch.from_numpy(part).to(every.device), None]
            rows = model.manifold.distance(here, every[None]).cpu().numpy()
            found += [
                ranking(row, int(node), parents[int(node)])
                for row, node in zip(rows, part, strict=True)
            ]
        return found
