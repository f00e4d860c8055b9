"""The composition root: from a run file to a trained model in a folder.

    runs/x/run.yaml        the settings, complete; itself a run file
    runs/x/data/           the prepared corpus, unless another folder was named
    runs/x/tokenizer/      trained on the corpus, unless the run starts from a model
    runs/x/metrics.jsonl   one line a step
    runs/x/eval.jsonl      what was measured, with its step
    runs/x/checkpoints/    where an interrupted run resumes
    runs/x/adapter/        the adapter, in the format of PEFT
    runs/x/model/          final weights, tokenizer, chat template
    runs/x/report.md       plots and tables

Started again with the same folder, a run resumes where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from culm import log
from culm.adapt.lora import adapters_of
from culm.adapt.merge import merge_verified
from culm.adapt.quantize.qat import convert
from culm.config import SettingError
from culm.convert import native, peft
from culm.convert.family import NoFamilyError
from culm.device import choose_device, choose_precision
from culm.eval.evaluation import Evaluation
from culm.files import atomic, read_lines, write_json
from culm.model.transformer import Transformer
from culm.objective.objective import Objective
from culm.parallel.launch import process_group, take_gpu
from culm.parallel.parallelize import Parallel, parallelize
from culm.parallel.ranks import Ranks
from culm.parallel.sharded import is_sharded, state_of
from culm.run.assemble import (
    Assembly,
    assemble,
    evaluation_of,
    initial_model,
    make_tokenizer,
    training_batches,
)
from culm.run.objective import change_model
from culm.run.settings import RunConfig
from culm.run.start import model_id
from culm.train.checkpoint import Progress, Store, WholeStore
from culm.train.events import Ended, Event, Listeners, Measured, Stepped
from culm.train.guard import Interruption, locked
from culm.train.listeners import (
    Checkpoints,
    EvaluationFile,
    Evaluations,
    MetricsFile,
    ProgressBar,
)
from culm.train.malloc import keep_freed_memory
from culm.train.memory import peak_bytes, reset_peak
from culm.train.run_folder import read_settings, write_settings
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
        trainer.fit(training_batches(run), steps)
    return sum(times[updates:]) / (steps - updates)


def train(config: RunConfig) -> Result:
    """Train to the end, or until interrupted; started again, continue where it stopped."""
    take_gpu()
    device = choose_device(config.device)
    folder = Path(config.folder)
    keep_freed_memory()
    with process_group(device) as ranks, _locked(folder, ranks):
        reset_peak()
        if ranks.writer:
            write_settings(folder, _settled(config, folder, device))
            if config.start is None:
                make_tokenizer(config, folder)
        ranks.wait()
        settled = read_settings(folder, RunConfig)
        assert settled is not None
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
    if not ranks.writer:
        yield
        return
    with locked(folder):
        yield


def wrap(run: Assembly) -> Parallel:
    """The objective of a run on its ranks."""
    train = run.config.train
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
    store = WholeStore(folder, run.objective, optimizer, train.checkpoint.keep, run.ranks)
    start = _resume(folder, store, batches)
    evaluation = evaluation_of(run)
    log.say(f"Attention backend: {' and '.join(run.model.backends)}.")
    with closing(Listeners()) as listeners, listeners.failure():
        _listen(run, listeners, evaluation, store, batches, start)
        if start.step == 0:
            listeners(Measured(0, evaluation.run()))
        interruption = Interruption()
        with log.progress(folder.name, train.steps, "steps") as bar, interruption.watching():
            bar.advance(start.step)
            listeners.add(ProgressBar(bar))
            trainer = Trainer(
                parallel, optimizer, train.schedule, clip=train.clip, seed=run.config.seed,
                listener=listeners, stop=interruption,
            )  # fmt: skip
            step = trainer.fit(batches, train.steps, start.step, start.tokens)
        finished = step == train.steps
        results = _finish(run, evaluation, step, listeners) if finished else {}
        listeners(Ended(step, finished, results, folder / "model" if finished else None))
    if not finished:
        log.say(f"Stopped after step {step}; the same command resumes it.")
    return Result(folder, finished, step, results)


def _listen(
    run: Assembly,
    listeners: Listeners,
    evaluation: Evaluation,
    store: Store,
    batches: Batches,
    start: Progress,
) -> None:
    """Add the listeners in their order: files are written before the checkpoint of a step is."""
    config, folder, fingerprint = run.config, run.folder, start.data

    def save(step: int, tokens: int, done: Callable[[Path], None]) -> None:
        store.save(Progress(step, tokens, fingerprint), batches.state(step), done)

    if run.ranks.writer:
        listeners.add(MetricsFile(folder / "metrics.jsonl", start.step))
        listeners.add(EvaluationFile(folder / "eval.jsonl"))
        settings = config.model_dump(mode="json")
        trackers: tuple[TrackerConfig, ...] = config.track
        for tracker in trackers:
            listeners.add(tracker.open(folder, settings, start.step))
    listeners.add(Evaluations(evaluation.run, config.eval.every_steps, listeners))
    listeners.add(Checkpoints(save, store.wait, config.train.checkpoint.every_steps, listeners))


def _resume(folder: Path, store: Store, batches: Batches) -> Progress:
    fingerprint, found = batches.fingerprint, store.load()
    if found is None:
        return Progress(0, 0, fingerprint)
    progress, state = found
    if progress.data != fingerprint:
        raise SettingError(
            f"{folder}: its checkpoint was trained on other data, or in another order "
            "(data.*, seed, train.batch_size or train.context changed); give a new run another "
            "folder=..."
        )
    batches.restore(progress.step, state)
    log.say(f"Resuming {folder} after step {progress.step}.")
    return progress


# -- after the last step ------------------------------------------------------------------------


def _finish(
    run: Assembly, evaluation: Evaluation, step: int, listeners: Listeners
) -> dict[str, Any]:
    """Measure, write the model and the results; every rank takes part."""
    measured = evaluation.run(final=True)
    listeners(Measured(step, measured))
    results = {"step": step, **measured, **_facts(run.folder)}
    _write_models(run)
    if run.ranks.writer:
        with atomic(run.folder / "results.json") as fresh:
            write_json(fresh, results)
    run.ranks.wait()
    return results


def _facts(folder: Path) -> dict[str, Any]:
    """seconds: of all steps, however often the run was stopped; peak_bytes: of this process."""
    seconds = sum(line["seconds"] for line in read_lines(folder / "metrics.jsonl"))
    return {"seconds": round(seconds, 3), "peak_bytes": peak_bytes()}


def _write_models(run: Assembly) -> None:
    """Each model that was trained, such as a critic, in a folder of its name.

    Their adapters are merged and their weights quantised; adapters of the policy also separately.
    """
    train, whole = run.config.train, _whole(run)
    if whole is None:
        return
    if train.adapter is not None:
        _write_adapter(run, whole.model)
    for name, model in whole.trained().items():
        if adapters_of(model):
            merge_verified(model)
        if train.qat is not None:
            convert(model)
        native.save(model, run.tokenizer, run.folder / name)


def _whole(run: Assembly) -> Objective | None:
    """The objective with whole weights, on the rank that writes."""
    objective = run.objective
    if is_sharded(objective):  # every rank takes part
        weights = {name: state_of(model) for name, model in objective.trained().items()}
        if run.ranks.writer:  # models on the CPU, where a backend of the GPU cannot run, take them
            config, dtypes = run.config, {n: m.dtype for n, m in objective.models().items()}
            model, _ = initial_model(config, run.folder)
            change_model(config, model)
            objective = config.train.objective.build(model, run.load, config.seed).cpu()
            for name, part in objective.trained().items():
                part.load_state_dict(weights[name])
                part.dtype = dtypes[name]
    return objective if run.ranks.writer else None


def _write_adapter(run: Assembly, model: Transformer) -> None:
    """In the format of PEFT, where its layers have names there."""
    config = run.config
    assert config.train.adapter is not None
    # An upcycled model is in no folder: there is no base to name.
    below = config.start if config.upcycle is None else None
    base = None if below is None else model_id(below)
    try:
        peft.save(model, config.train.adapter, run.folder / "adapter", base)
    except NoFamilyError as error:
        log.say(f"The adapter was merged but not saved separately: {error}.")
