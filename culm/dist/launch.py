"""Join the processes that torchrun started; alone, a run is one rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as distributed

from culm.dist.ranks import Ranks


@contextmanager
def joined(device: torch.device | str) -> Iterator[Ranks]:
    """The ranks of this run, joined for its duration."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield Ranks()
        return
    distributed.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo")
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
        # Without it a rank may leave while another still talks to it.
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
