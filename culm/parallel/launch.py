"""Join the processes that torchrun started; without it, a run is one rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as distributed

from culm.parallel.mesh import build_mesh
from culm.parallel.ranks import Ranks

PATIENCE = timedelta(days=1)  # what the writer may need to prepare a corpus


def take_gpu() -> None:
    """Make the GPU of this rank the current one; before anything else touches a GPU."""
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


@contextmanager
def process_group(device: torch.device | str) -> Iterator[Ranks]:
    """The ranks of this run, joined for its duration.

    A program that joined them before keeps them joined: gloo cannot reliably be joined twice.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if distributed.is_initialized():
        yield _joined(device)
        return
    cuda = torch.device(device).type == "cuda"
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield _joined(device)
        # Without it a rank may leave while another still talks to it.
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def _joined(device: torch.device | str) -> Ranks:
    mesh = build_mesh(device)
    data = mesh["data"]
    return Ranks(
        rank=data.get_local_rank(),
        count=data.size(),
        writer=distributed.get_rank() == 0,
        mesh=mesh,
        patient=distributed.new_group(backend="gloo", timeout=PATIENCE),
    )
