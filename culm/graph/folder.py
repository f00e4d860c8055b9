"""The points of a trained run on the disk.

model/points.safetensors   points (nodes, D) fp64, and log c where it was learned
model/embedding.json       the space
model/nodes.txt            the name of each node, a line each
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from culm.atomic import atomic
from culm.config import SettingError, did_you_mean, parse
from culm.files import POINTS as SETTINGS
from culm.files import read_json, write_json
from culm.graph.embedding import Embedding, EmbeddingConfig
from culm.safetensors import write_safetensors

POINTS, NODES = "points.safetensors", "nodes.txt"


@dataclass(frozen=True)
class NamedPoints:
    """An embedding with the names of its nodes."""

    model: Embedding
    names: tuple[str, ...]

    def number(self, name: str) -> int:
        """The number of a node.

        Raises:
            SettingError: there is no such node.
        """
        if name not in self.names:
            raise SettingError(f"{name}: no such node{did_you_mean(name, self.names[:20_000])}")
        return self.names.index(name)

    @torch.no_grad()
    def near(self, name: str, count: int = 10) -> list[tuple[str, float]]:
        """The nearest nodes of a node, with their distances."""
        own = self.number(name)
        points = self.model(torch.arange(len(self.names)))
        distances = self.model.manifold.distance(points[own], points)
        order = distances.argsort().tolist()
        return [(self.names[i], float(distances[i])) for i in order if i != own][:count]


def save_points(points: NamedPoints, folder: Path) -> None:
    """Write a model folder."""
    with atomic(folder) as fresh:
        fresh.mkdir()
        state = {name: value.cpu() for name, value in points.model.state_dict().items()}
        write_safetensors(fresh / POINTS, state)
        write_json(fresh / SETTINGS, points.model.config.model_dump(mode="json"))
        (fresh / NODES).write_text("".join(f"{name}\n" for name in points.names), encoding="utf-8")


def points_folder(path: str | Path) -> Path | None:
    """The model folder of a run or of itself, if it holds points; None for other models."""
    places = (Path(path), Path(path) / "model")
    return next((place for place in places if (place / SETTINGS).is_file()), None)


def load_points(path: str | Path) -> NamedPoints:
    """What `save_points` wrote; path: the folder, or its run.

    Raises:
        SettingError: it is not there, or its files do not fit.
    """
    folder = points_folder(path)
    if folder is None:
        raise SettingError(f"{path}: there are no points of a graph here; culm train poincare")
    config = parse(EmbeddingConfig, read_json(folder / SETTINGS), str(folder / SETTINGS))
    written = (folder / NODES).read_text(encoding="utf-8")
    names = tuple(written.removesuffix("\n").split("\n"))  # other marks of lines may be in names
    model = config.build(len(names))
    try:
        model.load_state_dict(load_file(folder / POINTS))
    except (RuntimeError, OSError) as error:
        raise SettingError(f"{folder}: {' '.join(str(error).split())[:200]}") from error
    return NamedPoints(model, names)
