"""All processes of a job, on the axes along which work is divided.

    pipeline   different layers, on the same rows
    data       different rows of a step
    context    different tokens of each row
    tensor     different parts of each matmul

    replicate  copies of the weights: over ranks of "data" and "context"
    shard      shards of the weights (FSDP2): over the others of these ranks
    expert     different experts: over ranks of any of these axes

Neighbouring ranks, which are on one machine, are those that exchange most: tensor is the innermost
axis, and context the next. Those of a pipeline exchange least: it is the outermost axis of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as distributed
from torch.distributed import DeviceMesh
from torch.distributed.device_mesh import init_device_mesh

from culm.parallel.axis import Axis
from culm.parallel.settings import ParallelConfig


class Axes(NamedTuple):
    """The axes along which one model is divided."""

    tensor: Axis
    context: Axis
    expert: Axis
    pipeline: Axis


@dataclass(frozen=True)
class Mesh:
    """The same ranks three times.

    Each has the axis pipeline first. rows: axes data, context, tensor. weights: axes replicate,
    shard, tensor. experts: axes expert_replicate, expert_shard, expert. gradients: all ranks with
    the same part of the matmuls, whose gradients are averaged.
    """

    rows: DeviceMesh
    weights: DeviceMesh
    experts: DeviceMesh
    gradients: DeviceMesh

    @property
    def data(self) -> DeviceMesh:
        return self.rows["data"]

    @property
    def same_experts(self) -> int:
        """Ranks that compute with the same experts, and exchange their gradients."""
        return self.experts["expert_replicate"].size() * self.experts["expert_shard"].size()

    @property
    def axes(self) -> Axes:
        """Those along which one model is divided."""
        meshes = (
            self.weights["tensor"], self.rows["context"], self.experts["expert"],
            self.rows["pipeline"],
        )  # fmt: skip
        return Axes(*map(Axis, meshes))


def build_mesh(device: torch.device | str, settings: ParallelConfig) -> Mesh:
    """All processes of the job, which have joined.

    Raises:
        SettingError: the axes do not divide the processes.
    """
    kind, ranks = torch.device(device).type, distributed.get_world_size()
    data = settings.data_ranks(ranks)
    holders = data * settings.context  # of the same part of the matmuls
    copies = holders if settings.data == "ddp" else settings.replicas
    stages = settings.pipeline
    rows = _mesh(kind, pipeline=stages, data=data, context=settings.context, tensor=settings.tensor)
    weights = _mesh(
        kind, pipeline=stages, replicate=copies, shard=holders // copies, tensor=settings.tensor
    )
    others = ranks // (stages * settings.expert)
    expert_copies = others if settings.data == "ddp" else settings.replicas
    experts = _mesh(
        kind, pipeline=stages, expert_replicate=expert_copies,
        expert_shard=others // expert_copies, expert=settings.expert,
    )  # fmt: skip
    return Mesh(rows, weights, experts, weights["replicate", "shard"]._flatten("gradients"))


def _mesh(kind: str, **axes: int) -> DeviceMesh:
    return init_device_mesh(kind, tuple(axes.values()), mesh_dim_names=tuple(axes))
