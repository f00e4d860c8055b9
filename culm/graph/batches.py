"""Batches of edges, each with negatives: other nodes that are no parents of the child."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from culm.batch import Batch
from culm.graph.edges import Graph
from culm.parallel.ranks import Ranks
from culm.seed import keyed_permutation


class EdgeBatches:
    """Step n is a function of seed and n alone, whatever the number of ranks.

    A row has the child, its parent, and `negatives` nodes from all with equal probability. Those
    that are the child itself or another of its parents are marked in `Batch.extra["known"]`, and
    take no part in the loss.
    """

    def __init__(
        self, graph: Graph, batch_size: int, negatives: int, seed: int, ranks: Ranks = Ranks()
    ) -> None:
        self.graph, self.batch_size, self.negatives = graph, batch_size, negatives
        self.seed, self.ranks = seed, ranks
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """Of the graph, and of what chooses the rows."""
        facts = (self.graph.fingerprint, self.batch_size, self.negatives, self.seed)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def step(self, number: int) -> list[Batch]:
        """The rows of this rank in one batch, (B, 2 + negatives) node numbers."""
        rows = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
        epochs, places = np.divmod(rows, len(self.graph.edges))
        chosen = [self._shuffled(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs)]
        edges = self.graph.edges[np.concatenate(chosen)]
        chance = np.random.default_rng((self.seed, number, 2))
        others = chance.integers(len(self.graph.names), size=(self.batch_size, self.negatives))
        children = edges[:, :1]
        known = self.graph.has(children, others) | (others == children)
        own = slice(self.ranks.rank, None, self.ranks.count)
        nodes = torch.from_numpy(np.concatenate((edges, others), 1)[own])
        return [batch_of(nodes, torch.from_numpy(known[own]))]

    def _shuffled(self, epoch: int) -> np.ndarray:
        """The numbers of all edges in the order of an epoch."""
        if epoch != self._epoch:
            every = np.arange(len(self.graph.edges))
            self._epoch, self._order = epoch, keyed_permutation(every, self.seed, int(epoch))
        return self._order

    def state(self, steps: int) -> dict[str, Tensor]:
        """Nothing: the number of a step says all."""
        return {}

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""


def batch_of(nodes: Tensor, known: Tensor) -> Batch:
    """nodes: (B, 2 + N) int64, child, parent, negatives. known: (B, N) bool, left out."""
    size = float(len(nodes))
    counts = {"tokens": float(nodes.numel()), "targets": size, "rows": size}
    positions = torch.zeros_like(nodes)
    return Batch(nodes, nodes[:, 1:2], positions, counts=counts, extra={"known": known})
