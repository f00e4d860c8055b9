"""The largest micro-batch of a run that fits a memory, found before it starts or once it failed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from culm.device import memory_bytes
from culm.dtype import activations_of
from culm.exits import OutOfMemory
from culm.objective.objective import Objective
from culm.parallel.parallelize import parallelize
from culm.plan.dry_run import set_backend
from culm.plan.layout import Layout
from culm.plan.memory_fit import ROOM, Fit, advice, largest_fit
from culm.plan.needs import needs_of
from culm.run.initial import context_of, model_from_start
from culm.run.objective import ModelLoader, build_objective
from culm.run.patching import model_settings
from culm.run.settings import RunConfig
from culm.run.step import step_of

META = torch.device("meta")
LESS = 0.9  # of what did not fit, although a plan may have said so


class Planned:
    """A run on the meta device, where its precision is settled.

    gpu: whether it trains on one, which has other attention kernels. sequences: see `step_of`.
    """

    def __init__(self, config: RunConfig, layout: Layout, *, gpu: bool, sequences: int = 1) -> None:
        self.optimizer, self.recomputed = (
            config.train.optimizer, config.train.activation_checkpointing
        )  # fmt: skip
        if config.model is not None:
            model = model_settings(config).build(device=META)
        else:
            model = model_from_start(config)[0]
            model.to(META).tie()
        self.step = step_of(config, context_of(config, model), layout, sequences)
        load = ModelLoader(config, META, compared=False)
        self.objective: Objective = build_objective(config, model, META, load)
        dtype = activations_of(config.train.precision)
        set_backend(self.objective, config.train.attention_backend, gpu, dtype)
        own = set(self.objective.models().values())
        self.others: list[nn.Module] = [one for one in load.loaded if one not in own]

    def fit(self, limit: float) -> Fit | None:
        """What `largest_fit` finds. limit: bytes for tensors."""
        return largest_fit(self.objective, self.optimizer, self.step, limit, self.others)

    def bytes(self) -> int:
        """What the run needs as it is; afterwards the objective is changed."""
        parallelize(self.objective, activation_checkpointing=self.recomputed)
        needs = needs_of(
            self.objective, self.optimizer, self.step, self.others, count_flops=False
        )  # fmt: skip
        return needs.memory.total


@contextmanager
def advised(
    config: RunConfig, processes: int, device: torch.device, sequences: int
) -> Iterator[None]:
    """Adds to an error of too little memory what the plan would do about it.

    sequences: see `step_of`.
    """
    try:
        yield
    except OutOfMemory as error:
        layout, gpu = Layout(config.parallel, processes), device.type == "cuda"
        memory = memory_bytes(device)
        tried = Planned(config, layout, gpu=gpu, sequences=sequences).bytes()
        limit = min(LESS * tried, math.inf if memory is None else ROOM * memory)
        found = Planned(config, layout, gpu=gpu, sequences=sequences).fit(limit)
        raise OutOfMemory(f"{error}. By the plan, {advice(found)}") from error
