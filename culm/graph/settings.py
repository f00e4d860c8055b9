"""The settings of a run that learns points for the nodes of a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from culm.config import MAY_CHANGE, Config, MayChange, SettingError
from culm.graph.edges import Cycles, Graph, read_graph
from culm.graph.embedding import EmbeddingConfig
from culm.graph.measure import Reconstruction
from culm.optim import Optimizer, Schedule
from culm.optim.riemannian import Riemannian, RiemannianAdam
from culm.optim.schedule import Constant
from culm.train.checkpoint.settings import CheckpointConfig
from culm.train.trackers import Trackers

KIND = "graph"  # of a run file, by which verbs know it


class EdgeConfig(Config):
    """path: a file of edges, a child and its parent in each line (`culm.graph.edges`).

    closure: add an edge to every ancestor. cycles: whether edges in a circle are an error.
    """

    path: Path
    closure: bool = False
    cycles: Cycles = "error"

    @model_validator(mode="after")
    def _hierarchy(self) -> EdgeConfig:
        if self.closure and self.cycles == "keep":
            raise ValueError("closure: it needs a graph without circles; set closure=false")
        return self

    def read(self) -> Graph:
        """The graph.

        Raises:
            SettingError: the file holds none, or one from which nothing can be learned.
        """
        graph = read_graph(self.path, self.closure, self.cycles)
        if not graph.has_negatives:
            raise SettingError(
                f"data.path: in {self.path} each child has all other nodes as parents, so it has "
                "none to be kept apart from; give a larger graph"
            )
        return graph


class EdgeTraining(Config):
    """steps: optimizer steps. batch_size: edges of a step. negatives: nodes that each is compared
    with. clip: maximum gradient norm; null: no limit.

    optimizer: riemannian_adam or riemannian_sgd; of points in flat space they are Adam and SGD.
    trackers: where metrics are reported to, besides the files in the folder.
    """

    steps: Annotated[PositiveInt, MAY_CHANGE]
    batch_size: PositiveInt = 512
    negatives: PositiveInt = 50
    optimizer: Annotated[Optimizer, MayChange(but=("kind",))] = RiemannianAdam()
    schedule: Annotated[Schedule, MAY_CHANGE] = Constant()
    clip: PositiveFloat | None = None
    checkpoint: Annotated[CheckpointConfig, MAY_CHANGE] = CheckpointConfig()
    trackers: Annotated[Trackers, MAY_CHANGE] = ()


class GraphRun(Config):
    """folder: where everything goes; started again with the same folder, the run resumes.

    seed: of the points and of the order of edges. model: the space. data: the graph.
    """

    kind: Literal["graph"] = "graph"
    folder: Annotated[str, MAY_CHANGE] = Field(default="runs/poincare", min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: Annotated[str, MAY_CHANGE] = "auto"
    model: EmbeddingConfig = EmbeddingConfig()
    data: EdgeConfig
    train: EdgeTraining
    eval: Annotated[Reconstruction, MAY_CHANGE] = Reconstruction()

    @model_validator(mode="after")
    def _stays_on_the_manifold(self) -> GraphRun:
        optimizer = self.train.optimizer
        if self.model.geometry != "euclidean" and not isinstance(optimizer, Riemannian):
            raise ValueError(
                f"train.optimizer: {optimizer.kind} takes straight steps, which leave "
                "hyperbolic space; use riemannian_adam or riemannian_sgd"
            )
        return self
