"""How the weights of a run are updated, as its settings ask for."""

from __future__ import annotations

from dataclasses import replace

from culm.config import SettingError
from culm.optim.rule import RuleOptimizer
from culm.parallel.check import check_micro_batches
from culm.parallel.parallelize import Parallel
from culm.run.assemble import Assembly
from culm.run.settings import RunConfig
from culm.run.train_settings import TrainConfig
from culm.train.loss_scale import LossScale
from culm.train.rates import ByRows, RateSchedule
from culm.train.spikes import WithoutSpikes
from culm.train.update import Update, UpdateInBackward, peak_rates


def rates_of(train: TrainConfig, batches: WithoutSpikes) -> RateSchedule:
    """How the learning rate moves over the steps of a run, with what it left out after spikes."""
    rates = train.rates
    return replace(rates, passed=lambda: batches.passed) if isinstance(rates, ByRows) else rates


def loss_scale_of(config: RunConfig) -> LossScale | None:
    """That of a run in fp16, at its start."""
    return LossScale() if config.train.precision == "fp16" else None


def update_of(
    run: Assembly, parallel: Parallel, optimizer: RuleOptimizer, scale: LossScale | None
) -> Update:
    """After the backward of a step, or within it. scale: of fp16.

    Raises:
        SettingError: several processes cannot update within it.
    """
    train, seed = run.config.train, run.config.seed
    if not train.optimizer_in_backward:
        return Update(
            parallel, optimizer, clip=train.clip, clip_by=train.clip_by, seed=seed,
            loss_scale=scale, ratio_every=train.update_ratio_every,
            peaks=peak_rates(optimizer, run.ranks),
        )  # fmt: skip
    check_in_backward(run.config, run.ranks.processes)
    return UpdateInBackward(parallel, optimizer, seed=seed, ratio_every=train.update_ratio_every)


def check_in_backward(config: RunConfig, processes: int) -> None:
    """Refuse updates in the backward of several processes.

    Raises:
        SettingError: they were asked for.
    """
    if config.train.optimizer_in_backward and processes > 1:
        raise SettingError(
            "train.optimizer_in_backward: processes add up their gradients, and each is dropped "
            "when its parameter is updated; use one process, or leave it out"
        )


def check_processes(config: RunConfig, processes: int) -> None:
    """Refuse what this many processes cannot share, before they start.

    Raises:
        SettingError: the layout, a batch or its micro-batches do not divide, or updates are in the
            backward.
    """
    train, ranks = config.train, config.parallel.data_ranks(processes)
    train.batch_sizes.check(ranks)
    check_in_backward(config, processes)
    for size in train.batch_sizes.distinct:
        check_micro_batches(config.parallel, -(-size // (ranks * train.at_once)))
