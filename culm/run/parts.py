"""What trains a run: its objective on all ranks, optimizer, data and checkpoints, and the loop."""

from __future__ import annotations

from dataclasses import dataclass

from culm.data.loader import Loader
from culm.objective.objective import Objective
from culm.optim.rule import RuleOptimizer
from culm.parallel.parallelize import Parallel, parallelize
from culm.plan.utilisation import on_meta
from culm.rollout.buffer import Rollouts
from culm.run.assemble import Assembly, training_batches
from culm.run.memory_fit import advised
from culm.run.precomputed import add_precomputed, calibrate
from culm.run.step import RunData, sequences_of
from culm.run.update import check_processes, loss_scale_of, rates_of, update_of
from culm.train.checkpoint.store import CheckpointStore
from culm.train.events import Listeners
from culm.train.guard import Interruption
from culm.train.judge import Finite
from culm.train.loss_scale import LossScale
from culm.train.speed import Speed
from culm.train.spikes import SpikeConfig, Spikes, WithoutSpikes
from culm.train.straggler import Stragglers
from culm.train.trainer import Trainer
from culm.train.with_state import WithState


def wrap(run: Assembly) -> Parallel:
    """The objective of a run on its ranks."""
    train = run.config.train
    if run.ranks.mesh is not None:
        check_processes(run.config, run.ranks.processes)
    return parallelize(
        run.objective, run.ranks, run.config.parallel, compile=train.compile,
        activation_checkpointing=train.activation_checkpointing,
    )  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """What trains a run. hollow: its objective on the meta device, before it was divided over
    ranks. rows: what is read; batches: the same without what spikes left out.
    """

    hollow: Objective
    parallel: Parallel
    optimizer: RuleOptimizer
    scale: LossScale | None
    spikes: Spikes
    rows: RunData
    batches: WithoutSpikes
    store: CheckpointStore


def parts_of(run: Assembly) -> Parts:
    """At step 0."""
    train = run.config.train
    hollow, parallel = on_meta(run.objective), wrap(run)
    optimizer = train.optimizer.build(run.objective)
    rows = training_batches(run)
    if isinstance(rows, Loader):
        calibrate(run, rows)
        add_precomputed(run, rows)
    # Without spikes too: what an earlier start of this run left out stays so.
    spikes = Spikes(train.spike or SpikeConfig())
    scale = loss_scale_of(run.config)
    batches = WithoutSpikes(WithState(rows, "loss_scale", scale), spikes)
    store = CheckpointStore(run.folder, run.objective, optimizer, train.checkpoint, run.ranks)
    return Parts(hollow, parallel, optimizer, scale, spikes, rows, batches, store)


def trainer_of(
    run: Assembly, parts: Parts, speed: Speed, listeners: Listeners, interruption: Interruption
) -> Trainer:
    """The loop of a run, which says what happens to listeners and ends when it is interrupted."""
    train = run.config.train
    stragglers = Stragglers(train.straggler, run.objective, run.ranks)
    return Trainer(
        update_of(run, parts.parallel, parts.optimizer, parts.scale),
        rates_of(train, parts.batches),
        judge=Finite() if train.spike is None else parts.spikes,
        observers=(stragglers, speed),
        listener=listeners,
        stop=interruption,
    )


def dry_run(run: Assembly, parts: Parts, trainer: Trainer, step: int) -> None:
    """Whether a step fits the memory, before anything is written; of rollouts it is not known."""
    train, rows = run.config.train, parts.rows
    if step == train.steps or isinstance(rows, Rollouts):
        return
    ramped = train.batch_ramp is not None  # the last step is as large as any
    with advised(run.config, run.ranks.processes, run.device, sequences_of(rows)):
        trainer.dry_run(parts.batches, train.steps - 1 if ramped else step)
