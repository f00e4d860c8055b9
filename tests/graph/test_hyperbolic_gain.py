"""A tree needs hyperbolic space: a fast version of the gate, with the best rate of each."""

import numpy as np
import torch

from culm.graph.batches import EdgeBatches
from culm.graph.edges import Graph, transitive_closure
from culm.graph.embedding import EmbeddingConfig, Geometry
from culm.graph.measure import Reconstruction
from culm.graph.objective import EdgeObjective
from culm.optim.riemannian import RiemannianAdam
from culm.optim.schedule import LinearDecay
from culm.parallel.parallelize import parallelize
from culm.train.trainer import Trainer
from culm.train.update import Update

BRANCHES, NODES = 3, 121


def tree() -> Graph:
    """121 nodes in five levels, with edges to every ancestor."""
    direct = np.array([(node, (node - 1) // BRANCHES) for node in range(1, NODES)], dtype=np.int64)
    return Graph(tuple(map(str, range(NODES))), transitive_closure(direct, NODES))


def score(geometry: Geometry, rate: float) -> float:
    graph = tree()
    objective = EdgeObjective(EmbeddingConfig(dimension=2, geometry=geometry).build(NODES))
    optimizer = RiemannianAdam(rate=rate).build(objective)
    update = Update(parallelize(objective), optimizer, clip=None)
    Trainer(update, LinearDecay()).fit(EdgeBatches(graph, 64, 12, seed=0), 200)
    return Reconstruction().measure(objective.model, graph)["map"]["value"]


def test_a_tree_fits_better_into_hyperbolic_space() -> None:
    """In two dimensions, with the same loss, negatives and steps."""
    torch.manual_seed(0)
    hyperbolic = score("poincare", 0.6)
    flat = max(score("euclidean", rate) for rate in (0.6, 1.0))
    assert hyperbolic > flat + 0.10
