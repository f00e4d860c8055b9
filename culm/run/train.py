"""The composition root: from a run file to a trained model in a folder.

    runs/x/run.yaml        the settings, complete; itself a run file
    runs/x/data/           the prepared corpus, unless another folder was named
    runs/x/tokenizer/      trained on the corpus, unless the run starts from a model
    runs/x/precomputed.safetensors   what the start says of the corpus, if the objective asks
    runs/x/metrics.jsonl   one line a step
    runs/x/status.json     running, finished, interrupted or failed, and why
    runs/x/manifest.json   versions, hardware, data and code of each start
    runs/x/tracker.txt     the number by which W&B and MLflow know the run
    runs/x/eval.jsonl      what was measured, with its step
    runs/x/checkpoints/    where an interrupted run resumes
    runs/x/adapter/        the adapter, in the format of PEFT
    runs/x/model/          final weights, tokenizer, chat template
    runs/x/report.md       plots and tables

Started again with the same folder, a run resumes where it stopped.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from culm import log
from culm.config import SettingError
from culm.data.loader import Loader
from culm.determinism import make_deterministic
from culm.device import choose_device, choose_precision
from culm.exits import AGAIN, STOPPED
from culm.malloc import keep_freed_memory
from culm.parallel.launch import process_group, take_gpu
from culm.parallel.ranks import Ranks
from culm.run.assemble import (
    Assembly,
    assemble,
    evaluation_of,
    training_batches,
)
from culm.run.finish import check_outputs, finish
from culm.run.initial import make_tokenizer, source_of
from culm.run.listen import add_listeners, is_unmeasured
from culm.run.manifest import record_start
from culm.run.parts import dry_run, parts_of, trainer_of, wrap
from culm.run.precomputed import add_precomputed, calibrate
from culm.run.resume import resume
from culm.run.rewind import fit
from culm.run.settings import RunConfig
from culm.run.speed import speed_of
from culm.run.update import loss_scale_of, update_of
from culm.run.verdict import any_changed, sums_of
from culm.train.events import Ended, Event, Listeners, Measured, Stepped
from culm.train.guard import Interruption, locked
from culm.train.listeners import ProgressBar
from culm.train.memory import reset_peak
from culm.train.replicas import ReplicaCheck
from culm.train.run_folder import discard_settings, read_settings, write_settings
from culm.train.status import Status
from culm.train.trackers.tracker import TrackerConfig
from culm.train.trainer import Trainer


@dataclass(frozen=True)
class Result:
    """What a run came to. finished: it was not interrupted. exit_code: of a process that trains."""

    folder: Path
    finished: bool
    steps: int
    results: dict[str, Any]
    exit_code: int = 0


def seconds_per_step(config: RunConfig) -> float:
    """Mean time of a step of this run on this machine, from a trial that is thrown away.

    The corpus must be prepared. The first step, or the first rollout, warms up and is not counted.
    """
    keep_freed_memory()
    run = assemble(config, Path(config.folder), choose_device(config.device))
    updates = config.train.updates
    steps = max(3, 2 * updates)
    times: list[float] = []
    with log.progress("trial", steps, "steps") as bar:
        show = ProgressBar(bar)

        def listen(event: Event) -> None:
            show(event)
            if isinstance(event, Stepped):
                times.append(event.seconds)

        optimizer = config.train.optimizer.build(run.objective)
        update = update_of(run, wrap(run), optimizer, loss_scale_of(config))
        trainer = Trainer(update, config.train.rates, listener=listen)
        batches = training_batches(run)
        if isinstance(batches, Loader):
            calibrate(run, batches)
            add_precomputed(run, batches)
        trainer.fit(batches, steps)
    return sum(times[updates:]) / (steps - updates)


def train(config: RunConfig) -> Result:
    """Train to the end, or until interrupted; started again, continue where it stopped."""
    trackers: tuple[TrackerConfig, ...] = config.train.trackers
    for tracker in trackers:
        tracker.check()
    if config.deterministic:
        make_deterministic()
    take_gpu()
    device = choose_device(config.device)
    folder = Path(config.folder)
    keep_freed_memory()
    with process_group(device, config.parallel) as ranks, _locked(folder, ranks):
        reset_peak()
        if ranks.writer:
            write_settings(folder, _settled(config, folder, device), source_of(config))
            if config.start is None:
                make_tokenizer(config, folder)
        ranks.wait()
        settled = read_settings(folder, RunConfig)
        if settled is None:
            raise SettingError(
                f"folder: {folder} has no run.yaml here, though the first rank wrote it; all ranks "
                "need one shared folder"
            )
        status = Status(folder, settled.train.steps, ranks.writer)
        with status.kept():
            return _train(assemble(settled, folder, device, ranks), status)


def _settled(config: RunConfig, folder: Path, device: torch.device) -> RunConfig:
    """With the precision chosen, once for all ranks and for every time that the run resumes."""
    if config.train.precision != "auto":
        return config
    old = read_settings(folder, RunConfig)
    known = old.train.precision if old else "auto"
    precision = choose_precision(device) if known == "auto" else known
    train = config.train.model_copy(update={"precision": precision})
    return config.model_copy(update={"train": train})


@contextmanager
def _locked(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Of the process that writes. A run that is refused before it made anything leaves no folder
    that was not there.
    """
    if not ranks.writer:
        yield
        return
    is_new = not folder.exists()
    try:
        with locked(folder):
            yield
    except (ValueError, OSError, ImportError):
        if is_new:
            discard_settings(folder)
        raise


def _train(run: Assembly, status: Status) -> Result:
    """Resume, listen, fit, finish."""
    train, folder, parts = run.config.train, run.folder, parts_of(run)
    start = resume(run, parts.store, parts.batches)
    status.step = start.step
    evaluation = evaluation_of(run)
    evaluation.check()

    def evaluate() -> dict[str, Any]:
        with parts.optimizer.averaged():
            return evaluation.attempt()

    check_outputs(run)
    speed = speed_of(run, parts.hollow, parts.rows)
    if run.ranks.writer:
        record_start(run, start, speed.flops_per_token)
    before = sums_of(run.objective)
    log.say(f"Attention backend: {' and '.join(run.model.backends)}.")
    with closing(Listeners()) as listeners, listeners.failure():
        interruption = Interruption(status.leave)
        trainer = trainer_of(run, parts, speed, listeners, interruption)
        dry_run(run, parts, trainer, start.step)
        listeners.add(status)
        if (every := train.check_replicas_every) is not None:  # none that differs is saved
            listeners.add(ReplicaCheck(run.objective, parts.optimizer, run.ranks, every))
        add_listeners(run, listeners, evaluate, parts.store, parts.batches, start, parts.optimizer)
        if is_unmeasured(run, start.step):
            listeners(Measured(start.step, evaluate()))
        with log.progress(folder.name, train.steps, "steps") as bar, interruption.watching():
            bar.advance(start.step)
            listeners.add(ProgressBar(bar, start.step))
            step = fit(trainer, parts.batches, train.steps, start, parts.store, listeners)
        finished, results = step == train.steps, {}
        if finished:
            changed = any_changed(before, run.objective, run.ranks, parts.parallel.device)
            idle = start.step < step and not changed
            with parts.optimizer.averaged():
                results = finish(run, evaluation, step, listeners, not idle, parts.batches.remarks)
        listeners(Ended(step, finished, results, folder / "model" if finished else None))
    return _result(run, step, results, interruption)


def _result(
    run: Assembly, step: int, results: dict[str, Any], interruption: Interruption
) -> Result:  # fmt: skip
    """What a run came to, with the exit code that all ranks have in common."""
    if step == run.config.train.steps:
        return Result(run.folder, True, step, results)
    log.say(f"Stopped after step {step}; the same command resumes it.")
    asked = next(filter(None, run.ranks.everyone(interruption.asked)), None)
    code = STOPPED if asked == signal.SIGINT else AGAIN
    return Result(run.folder, False, step, results, code)
