"""The Poincare disc as a picture: points of nodes, with edges as geodesics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

from culm.eval.plots import COLOURS, STYLE
from culm.graph.edges import Graph
from culm.hyperbolic.poincare import Poincare

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.collections import LineCollection

PIECES = 16  # straight pieces of a geodesic
LABELLED = 14  # nodes with the most children
MOST = 6000  # edges in a picture; of more the first ones


@dataclass(frozen=True)
class Disc:
    """points: (nodes, 2) in the unit disc. flat: whether the space was Euclidean, scaled to fit."""

    points: Tensor
    flat: bool
    title: str


def disc_of(points: Tensor, flat: bool) -> Disc:
    """points: (nodes, D) in the ball of radius 1, or in flat space.

    Of more than two dimensions the two with the greatest spread give the direction, and the
    distance from the origin is kept.
    """
    if flat:
        points = (points - points.mean(0)) / (points - points.mean(0)).norm(dim=-1).max()
    dimension = points.shape[1]
    if dimension == 1:
        points = torch.cat((points, torch.zeros_like(points)), -1)
    if dimension > 2:
        _, _, directions = torch.linalg.svd(points - points.mean(0), full_matrices=False)
        seen = points @ directions[:2].T
        length = seen.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        points = seen / length * points.norm(dim=-1, keepdim=True)
    space = f"Euclidean space, {dimension} dimensions" if flat else f"Poincare ball, {dimension}D"
    shown = " (direction of the two widest, true distance from the origin)" * (dimension > 2)
    return Disc(points, flat, space + shown)


def direct_edges(graph: Graph) -> np.ndarray:
    """(F, 2): the edges that no path of two others explains: of a closure, the hierarchy itself."""
    parents: dict[int, set[int]] = {}
    for child, parent in graph.edges.tolist():
        parents.setdefault(child, set()).add(parent)
    kept = []
    for child, above in parents.items():
        far = set().union(*(parents.get(one, set()) for one in above))
        kept += [(child, parent) for parent in sorted(above - far)]
    return np.array(kept, dtype=np.int64).reshape(-1, 2)


def draw_disc(path: Path, disc: Disc, names: tuple[str, ...], graph: Graph | None) -> None:
    """Write the picture. graph: whose edges it shows, and whose largest nodes are labelled."""
    with plt.rc_context(STYLE | {"figure.figsize": (7.2, 7.4), "axes.grid": False}):
        figure, axes = plt.subplots()
        if not disc.flat:
            axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="#999999", linewidth=0.8))
        if graph is not None:
            edges = direct_edges(graph)[:MOST]
            lines = LineCollection(
                list(_geodesics(disc, edges)), colors=COLOURS[0], linewidths=0.4, alpha=0.35
            )
            axes.add_collection(lines)
        depth = _depth(len(names), graph)
        xs, ys = disc.points.T.numpy()
        shown = axes.scatter(xs, ys, c=depth, s=6, cmap="viridis_r", linewidths=0, zorder=2)
        if graph is not None:
            figure.colorbar(shown, ax=axes, label="parents of the node", shrink=0.7)
            _label(axes, disc, names, graph)
        axes.set(xlim=(-1.04, 1.04), ylim=(-1.04, 1.04), aspect="equal")
        axes.set_axis_off()
        axes.set_title(disc.title, fontsize=8)
        figure.tight_layout()
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)


def _geodesics(disc: Disc, edges: np.ndarray) -> np.ndarray:
    """(E, PIECES + 1, 2): points along the geodesic of each edge."""
    start, end = (disc.points[torch.from_numpy(column)] for column in edges.T)
    along = torch.linspace(0, 1, PIECES + 1, dtype=disc.points.dtype)[:, None, None]
    if disc.flat:
        found = start + along * (end - start)
    else:
        ball = Poincare()
        found = ball.exp(start, along * ball.log(start, end))
    return found.transpose(0, 1).numpy()


def _depth(nodes: int, graph: Graph | None) -> np.ndarray:
    if graph is None:
        return np.zeros(nodes)
    return np.bincount(graph.edges[:, 0], minlength=nodes)


def _label(axes, disc: Disc, names: tuple[str, ...], graph: Graph) -> None:
    children = np.bincount(graph.edges[:, 1], minlength=len(names))
    for node in np.argsort(-children, kind="stable")[:LABELLED]:
        if children[node]:
            x, y = disc.points[node].tolist()
            axes.annotate(
                names[node].partition(".")[0], (x, y), fontsize=7, zorder=3,
                bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
            )  # fmt: skip
