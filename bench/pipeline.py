"""The share of time in which ranks of a pipeline wait, by schedule.

    torchrun --nproc-per-node=2 bench/pipeline.py

Trains a small model with each schedule, one thread a rank, and prints for each the time of a step
and the share of it in which a rank computes nothing: the processor time of its process against the
time on the clock. The bubble next to it is that of the schedule if all stages took as long.

The last row is data parallelism (DDP) with the same rows, in which ranks wait for gradients only.
"""

from __future__ import annotations

import time
from typing import get_args

import torch
import torch.distributed as distributed

from culm.batch import Batch, counts_of
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.objective.next_token import NextToken
from culm.parallel import launch
from culm.parallel.parallelize import parallelize
from culm.parallel.settings import ParallelConfig, PipelineSchedule

WIDTH, LAYERS, CONTEXT, ROWS, MICRO_BATCHES, STEPS = 256, 8, 128, 2, 8, 5


def batches() -> list[Batch]:
    """The micro-batches of a step."""
    chance = torch.Generator().manual_seed(0)
    found = []
    for _ in range(MICRO_BATCHES):
        tokens = torch.randint(256, (ROWS, CONTEXT + 1), generator=chance)
        targets, positions = tokens[:, 1:].contiguous(), torch.arange(CONTEXT).expand(ROWS, -1)
        found.append(Batch(tokens[:, :-1], targets, positions, counts=counts_of(targets)))
    return found


def measured(schedule: PipelineSchedule | None) -> tuple[float, float]:
    """Milliseconds of a step, and the share in which the ranks wait, on average."""
    ranks = distributed.get_world_size()
    settings = ParallelConfig()
    if schedule is not None:
        settings = ParallelConfig(pipeline=ranks, pipeline_schedule=schedule)
    model = TransformerConfig(
        vocabulary=256, width=WIDTH, layers=LAYERS, context=CONTEXT, attention=(GQA(heads=4),)
    ).build()
    objective = NextToken().build(model, lambda setting, path: model, 0)
    parallel = parallelize(objective, launch.joined("cpu", settings), settings)
    given, counts = batches(), {"targets": float(MICRO_BATCHES * ROWS * CONTEXT)}
    if schedule is None:
        given = given[distributed.get_rank() :: ranks]
    for step in range(STEPS + 1):
        if step == 1:  # the first one sets everything up
            distributed.barrier()
            start, busy = time.perf_counter(), time.process_time()
        parallel.gradients(given, counts)
        objective.zero_grad()
    worked, taken = time.process_time() - busy, time.perf_counter() - start
    shares = torch.tensor([1 - worked / taken])
    distributed.all_reduce(shares)
    return 1000 * taken / STEPS, float(shares) / ranks


def bubble(schedule: PipelineSchedule | None) -> float:
    """(ranks - 1) / (micro-batches + ranks - 1), divided by the stages of a rank; none in ZB-V."""
    ranks = distributed.get_world_size()
    if schedule in ("zero_bubble", None):
        return 0.0
    settings = ParallelConfig(pipeline=ranks, pipeline_schedule=schedule or "1f1b")
    waits = (ranks - 1) * ranks / settings.stages
    return waits / (MICRO_BATCHES + waits)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with launch.process_group("cpu"):
        for schedule in (*get_args(PipelineSchedule), None):
            milliseconds, waiting = measured(schedule)
            if distributed.get_rank() == 0:
                waits = f"waits {waiting:5.1%}   bubble {bubble(schedule):5.1%}"
                print(f"{schedule or 'ddp':12} {milliseconds:6.0f} ms a step   {waits}")
