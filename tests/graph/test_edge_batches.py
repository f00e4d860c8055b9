"""Batches of edges: pure in seed and step, the same for any number of ranks, right negatives."""

import numpy as np
import pytest
import torch

from culm.graph.batches import EdgeBatches
from culm.graph.edges import Graph
from culm.graph.embedding import EmbeddingConfig
from culm.graph.objective import EdgeObjective
from culm.parallel.ranks import Ranks


def tree(depth: int = 4) -> Graph:
    """A balanced binary tree with edges to every ancestor."""
    count = 2 ** (depth + 1) - 1
    edges = []
    for node in range(1, count):
        above = node
        while above:
            above = (above - 1) // 2
            edges.append((node, above))
    return Graph(tuple(f"n{node}" for node in range(count)), np.array(edges, dtype=np.int64))


def test_steps_are_pure_and_cover_every_edge() -> None:
    graph = tree()
    batches, again = (EdgeBatches(graph, 7, 3, seed=1) for _ in range(2))
    seen = [batches.step(n)[0] for n in range(2 * len(graph.edges) // 7)]
    for number in (9, 2, 11):
        assert torch.equal(again.step(number)[0].tokens, seen[number].tokens)
    rows = torch.cat([batch.tokens[:, :2] for batch in seen])[: len(graph.edges)]
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, graph.edges.tolist()))
    assert not torch.equal(EdgeBatches(graph, 7, 3, seed=2).step(0)[0].tokens, seen[0].tokens)


def test_ranks_divide_the_rows() -> None:
    whole = EdgeBatches(tree(), 8, 3, seed=1).step(5)[0]
    parts = [
        EdgeBatches(tree(), 8, 3, seed=1, ranks=Ranks(rank, 2)).step(5)[0] for rank in range(2)
    ]
    joined = torch.stack([part.tokens for part in parts], 1).flatten(0, 1)
    assert torch.equal(joined, whole.tokens)
    assert sum(part.counts["targets"] for part in parts) == whole.counts["targets"] == 8


def test_parents_and_the_child_itself_are_no_negatives() -> None:
    graph = tree()
    batch = EdgeBatches(graph, 64, 20, seed=0).step(0)[0]
    edges = {tuple(edge) for edge in graph.edges.tolist()}
    for row, known in zip(batch.tokens.tolist(), batch.extra["known"].tolist(), strict=True):
        wanted = [other == row[0] or (row[0], other) in edges for other in row[2:]]
        assert known == wanted
    assert batch.extra["known"].any()


@pytest.mark.parametrize("geometry", ["poincare", "lorentz", "euclidean"])
def test_loss_is_that_of_the_paper(geometry: str) -> None:
    """By a loop over edges; a marked negative changes nothing."""
    graph = tree()
    model = EmbeddingConfig(dimension=3, geometry=geometry, reach=0.4).build(len(graph.names))
    batch = EdgeBatches(graph, 6, 9, seed=0).step(0)[0]
    total = 0.0
    for row, known in zip(batch.tokens.tolist(), batch.extra["known"].tolist(), strict=True):
        u, points = model.points[row[0]], model.points[row[1:]]
        weights = (-model.manifold.distance(u, points)).exp()
        kept = [True, *(not one for one in known)]
        total -= float((weights[0] / weights[kept].sum()).detach().log())
    loss = EdgeObjective(model)(batch)
    assert float(loss.terms["nll"].total.detach()) == pytest.approx(total, rel=1e-9)
    assert loss.mean(batch.counts).item() == pytest.approx(total / 6, rel=1e-9)


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_points_that_coincide_find_no_parent(value: float) -> None:
    graph = tree()
    model = EmbeddingConfig(geometry="euclidean", dimension=3).build(len(graph.names))
    with torch.no_grad():
        for points in model.parameters():
            points.fill_(value)
    batch = EdgeBatches(graph, 64, 3, seed=0).step(0)[0]
    found = int(EdgeObjective(model)(batch).metrics["nearest"].total)
    alone = int(batch.extra["known"].all(1).sum())  # whose negatives are all known parents
    assert found == alone < 64 if value == 0 else found == 0
