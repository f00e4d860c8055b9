"""Join the processes that torchrun started; alone, a run is one rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as distributed

from culm.dist.ranks import Ranks


@contextmanager
def process_group(device: torch.device | str) -> Iterator[Ranks]:
    """The ranks of this run, joined for its duration. Each takes a GPU of its own.

    A program that joined them before keeps them joined: gloo cannot reliably be joined twice.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if distributed.is_initialized():
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
        # Without it a rank may leave while another still talks to it.
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
