"""The largest micro-batch of a run that fits a memory, found before it starts or once it failed."""

from __future__ import annotations

import torch

from culm.plan.dry_run import as_on_gpu
from culm.plan.fitting import Fit, largest_fit
from culm.plan.layout import Layout
from culm.plan.needs import Step
from culm.run.initial import context_of, model_from_start
from culm.run.objective import ModelLoader, build_objective
from culm.run.settings import RunConfig

META = torch.device("meta")


def step_of(config: RunConfig, context: int, layout: Layout, sequences: int = 1) -> Step:
    """The shape of a step. context: tokens of a row. sequences: in a row, such as 2 of a pair."""
    train = config.train
    return Step(
        context, train.batch_size, train.at_once, sequences=sequences,
        packed=train.objective.reads == "documents", columns=train.objective.columns,
        layout=layout,
    )  # fmt: skip


def fit_of(
    config: RunConfig, limit: float, layout: Layout, *, gpu: bool, sequences: int = 1
) -> Fit | None:
    """What `largest_fit` finds for a run, whose precision is settled.

    limit: bytes for tensors. gpu: whether it trains on one, which has other attention kernels.
    """
    if config.model is not None:
        model = config.model.build(device=META)
    else:
        model = model_from_start(config)[0]
        model.to(META).tie()
    context, load = context_of(config, model), ModelLoader(config, META)
    objective = build_objective(config, model, META, load)
    if gpu:
        as_on_gpu(objective)
    others = [one for one in load.loaded if one not in set(objective.models().values())]
    step = step_of(config, context, layout, sequences)
    return largest_fit(objective, config.train.optimizer, step, limit, others)
