"""One mesh of all processes, with a name for each axis along which work is divided.

    data    different rows of a step; the weights are copied (DDP) or sharded (FSDP2)

Tensor, pipeline, context and expert parallelism are further axes of the same mesh; every piece of
code asks for its axis by name, and `Ranks` tells data rank from writer.
"""

from __future__ import annotations

import torch
import torch.distributed as distributed
from torch.distributed import DeviceMesh
from torch.distributed.device_mesh import init_device_mesh

AXES = ("data",)


def build_mesh(device: torch.device | str) -> DeviceMesh:
    """All processes of the job, which have joined, on the axes of this run."""
    return init_device_mesh(
        torch.device(device).type, (distributed.get_world_size(),), mesh_dim_names=AXES
    )
