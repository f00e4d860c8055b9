"""The composition root: from a run file to a trained model in a folder.

    runs/x/run.yaml        the settings, complete; itself a run file
    runs/x/data/           the prepared corpus, unless another folder was named
    runs/x/tokenizer/      trained on the corpus, unless the run starts from a model
    runs/x/precomputed.safetensors   what the start says of the corpus, if the objective asks
    runs/x/metrics.jsonl   one line a step
    runs/x/eval.jsonl      what was measured, with its step
    runs/x/checkpoints/    where an interrupted run resumes
    runs/x/adapter/        the adapter, in the format of PEFT
    runs/x/model/          final weights, tokenizer, chat template
    runs/x/report.md       plots and tables

Started again with the same folder, a run resumes where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from culm import log
from culm.config import SettingError
from culm.data.loader import Loader
from culm.device import choose_device, choose_precision
from culm.files import read_lines
from culm.malloc import keep_freed_memory
from culm.parallel.check import check_micro_batches
from culm.parallel.launch import process_group, take_gpu
from culm.parallel.parallelize import Parallel, parallelize
from culm.parallel.ranks import Ranks
from culm.run.assemble import (
    Assembly,
    assemble,
    evaluation_of,
    training_batches,
)
from culm.run.finish import check_outputs, finish
from culm.run.initial import make_tokenizer, source_of
from culm.run.precomputed import add_precomputed
from culm.run.resume import resume
from culm.run.settings import RunConfig
from culm.run.verdict import any_changed, sums_of
from culm.train.checkpoint import Progress, Store, WholeStore
from culm.train.events import Ended, Event, Listeners, Measured, Stepped
from culm.train.guard import Interruption, locked
from culm.train.idle import IdleWatch
from culm.train.listeners import (
    Checkpoints,
    EvaluationFile,
    Evaluations,
    MetricsFile,
    ProgressBar,
    is_due,
)
from culm.train.memory import reset_peak
from culm.train.run_folder import discard_settings, read_settings, write_settings
from culm.train.trackers.tracker import TrackerConfig
from culm.train.trainer import Batches, Trainer


@dataclass(frozen=True)
class Result:
    """What a run came to. finished: it was not interrupted."""

    folder: Path
    finished: bool
    steps: int
    results: dict[str, Any]


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
        trainer = Trainer(wrap(run), optimizer, config.train.schedule, listener=listen)
        batches = training_batches(run)
        if isinstance(batches, Loader):
            add_precomputed(run, batches)
        trainer.fit(batches, steps)
    return sum(times[updates:]) / (steps - updates)


def train(config: RunConfig) -> Result:
    """Train to the end, or until interrupted; started again, continue where it stopped."""
    trackers: tuple[TrackerConfig, ...] = config.track
    for tracker in trackers:
        tracker.check()
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
        return _train(assemble(settled, folder, device, ranks))


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


def wrap(run: Assembly) -> Parallel:
    """The objective of a run on its ranks."""
    train = run.config.train
    if run.ranks.mesh is not None:
        rows = train.batch_size // run.ranks.count
        check_micro_batches(run.config.parallel, -(-rows // train.at_once))
    return parallelize(
        run.objective, run.ranks, run.config.parallel, compile=train.compile,
        activation_checkpointing=train.activation_checkpointing,
    )  # fmt: skip


def _train(run: Assembly) -> Result:
    """Resume, listen, fit, finish."""
    train, folder = run.config.train, run.folder
    parallel = wrap(run)
    optimizer = train.optimizer.build(run.objective)
    batches = training_batches(run)
    if isinstance(batches, Loader):
        add_precomputed(run, batches)
    store = WholeStore(folder, run.objective, optimizer, train.checkpoint.keep, run.ranks)
    start = resume(run, store, batches)
    evaluation = evaluation_of(run)
    evaluation.check()

    def evaluate() -> dict[str, Any]:
        with optimizer.averaged():
            return evaluation.attempt()

    check_outputs(run)
    before = sums_of(run.objective)
    log.say(f"Attention backend: {' and '.join(run.model.backends)}.")
    with closing(Listeners()) as listeners, listeners.failure():
        _listen(run, listeners, evaluate, store, batches, start)
        if _unmeasured(run, start.step):
            listeners(Measured(start.step, evaluate()))
        interruption = Interruption()
        with log.progress(folder.name, train.steps, "steps") as bar, interruption.watching():
            bar.advance(start.step)
            listeners.add(ProgressBar(bar))
            trainer = Trainer(
                parallel, optimizer, train.schedule, clip=train.clip, clip_by=train.clip_by,
                seed=run.config.seed, listener=listeners, stop=interruption,
            )  # fmt: skip
            step = trainer.fit(batches, train.steps, start.step, start.tokens)
        finished, results = step == train.steps, {}
        if finished:
            changed = any_changed(before, run.objective, run.ranks, parallel.device)
            idle = start.step < step and not changed
            with optimizer.averaged():
                results = finish(run, evaluation, step, listeners, not idle, batches.remarks)
        listeners(Ended(step, finished, results, folder / "model" if finished else None))
    if not finished:
        log.say(f"Stopped after step {step}; the same command resumes it.")
    return Result(folder, finished, step, results)


def _listen(
    run: Assembly,
    listeners: Listeners,
    evaluate: Callable[[], Mapping[str, Any]],
    store: Store,
    batches: Batches,
    start: Progress,
) -> None:
    """Add the listeners in their order: metrics are written before the checkpoint of a step is, and
    evaluations come after it.
    """
    config, folder = run.config, run.folder

    def save(step: int, tokens: int, done: Callable[[Path], None]) -> None:
        store.save(replace(start, step=step, tokens=tokens), batches.state(step), done)

    if run.ranks.writer:
        listeners.add(MetricsFile(folder / "metrics.jsonl", start.step))
        listeners.add(EvaluationFile(folder / "eval.jsonl"))
        listeners.add(IdleWatch())
        settings = config.model_dump(mode="json")
        trackers: tuple[TrackerConfig, ...] = config.track
        for tracker in trackers:
            listeners.add(tracker.open(folder, settings, start.step))
    listeners.add(Checkpoints(save, store.wait, config.train.checkpoint.every_steps, listeners))
    every_steps = config.eval.every_steps
    listeners.add(Evaluations(evaluate, every_steps, listeners, store.wait))


def _unmeasured(run: Assembly, step: int) -> bool:
    """Whether the step from which a run continues was to be evaluated, and the run was stopped
    before; all ranks agree.
    """
    if step == 0:
        return True
    if step == run.config.train.steps or not is_due(step, run.config.eval.every_steps):
        return False
    lines = read_lines(run.folder / "eval.jsonl")
    return run.ranks.everyone(all(line["step"] != step for line in lines))[0]
