"""The composition root: from a run file to a trained model in a folder.

    runs/x/run.yaml        the settings, complete; itself a run file
    runs/x/data/           the prepared corpus, unless another folder was named
    runs/x/tokenizer/      trained on the corpus, unless the run starts from a model
    runs/x/metrics.jsonl   one line a step
    runs/x/eval.jsonl      what was measured, with its step
    runs/x/checkpoints/    where an interrupted run goes on
    runs/x/adapter/        what was trained beside frozen weights, in the format of PEFT
    runs/x/model/          final weights, tokenizer, chat template
    runs/x/report.md       what came of it

Started again with the same folder, a run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from culm import log
from culm.adapt.merge import merge_verified
from culm.adapt.quantize.qat import convert, fake_quantize
from culm.config import SettingError
from culm.convert import native, peft
from culm.convert.family import NoFamilyError
from culm.device import choose_device, choose_precision
from culm.eval.measure import Measure
from culm.files import atomic, read_lines, write_json
from culm.model.transformer import Transformer
from culm.parallel.launch import process_group, take_gpu
from culm.parallel.parallelize import Parallel
from culm.parallel.ranks import Ranks
from culm.parallel.sharded import is_sharded, state_of
from culm.run.assemble import (
    context_of,
    held_out,
    initial_model,
    make_tokenizer,
    set_up,
    training_batches,
)
from culm.run.settings import RunConfig
from culm.run.start import model_id
from culm.tokenizer.tokenizer import Tokenizer
from culm.train import checkpoint
from culm.train.expert_balance import Balance
from culm.train.guard import Interruption, locked
from culm.train.hooks import MetricsFile, checkpointing, every, show
from culm.train.malloc import keep_freed_memory
from culm.train.memory import peak_bytes, reset_peak
from culm.train.run_folder import read_settings, write_settings
from culm.train.trainer import Hook, Trainer


@dataclass(frozen=True)
class Result:
    """What a run came to. finished: it was not interrupted."""

    folder: Path
    finished: bool
    steps: int
    results: dict[str, Any]


def seconds_per_step(config: RunConfig, steps: int = 3) -> float:
    """Time of one step of this run on this machine, from a trial that is thrown away.

    The corpus must be prepared. The first step, which warms up, is not counted.
    """
    device, folder = choose_device(config.device), Path(config.folder)
    keep_freed_memory()
    model, tokenizer = initial_model(config, folder)
    objective = set_up(config, model, device)
    context = context_of(config, model)
    batches, _ = training_batches(config, objective, model, tokenizer, folder, context, Ranks())
    optimizer = config.train.optimizer.build(objective)
    times: list[float] = []
    with log.progress("trial", steps, "steps") as bar:
        hooks: list[Hook] = [show(bar), lambda step: times.append(step.seconds)]
        trainer = Trainer(
            Parallel(objective, 1, config.parallel), optimizer, config.train.schedule, hooks=hooks
        )
        trainer.fit(batches, steps)
    return sum(times[1:]) / (steps - 1)


def train(config: RunConfig) -> Result:
    """Train to the end, or until interrupted; started again, go on where it stopped."""
    take_gpu()
    device = choose_device(config.device)
    folder = Path(config.folder)
    keep_freed_memory()
    with process_group(device) as ranks, _alone(folder, ranks):
        reset_peak()
        if ranks.first:
            write_settings(folder, _settled(config, folder, device))
            if config.start is None:
                make_tokenizer(config, folder)
        ranks.wait()
        settled = read_settings(folder, RunConfig)
        assert settled is not None
        return _train(settled, folder, device, ranks)


def _settled(config: RunConfig, folder: Path, device: torch.device) -> RunConfig:
    """With the precision chosen, once for all ranks and for every time that the run goes on."""
    if config.train.precision != "auto":
        return config
    old = read_settings(folder, RunConfig)
    known = old.train.precision if old else "auto"
    precision = choose_precision(device) if known == "auto" else known
    train = config.train.model_copy(update={"precision": precision})
    return config.model_copy(update={"train": train})


@contextmanager
def _alone(folder: Path, ranks: Ranks) -> Iterator[None]:
    if not ranks.first:
        yield
        return
    with locked(folder):
        yield


def _train(config: RunConfig, folder: Path, device: torch.device, ranks: Ranks) -> Result:
    settings = config.train
    model, tokenizer = initial_model(config, folder)
    context = context_of(config, model)
    objective = set_up(config, model, device)
    parallel = Parallel(objective, ranks.count, config.parallel)
    optimizer = settings.optimizer.build(objective)
    batches, fingerprint = training_batches(
        config, objective, model, tokenizer, folder, context, ranks
    )
    start = _resume(folder, objective, optimizer, fingerprint)
    measure = Measure(
        config.eval, model, tokenizer, lambda: held_out(config, tokenizer, folder, context),
        folder / "eval.jsonl", ranks.first,
    )  # fmt: skip
    if start.step == 0:
        measure(0)

    def save(step: int, tokens: int) -> None:
        progress = checkpoint.Progress(step, tokens, fingerprint)
        checkpoint.save(
            folder, objective, optimizer, progress, keep=settings.checkpoint.keep, ranks=ranks
        )

    log.say(f"Attention is computed by {' and '.join(model.backends)}.")
    interruption = Interruption()
    with log.progress(folder.name, settings.steps, "steps") as bar, interruption.watching():
        bar.advance(start.step)
        hooks: list[Hook] = [show(bar)]
        if ranks.first:
            hooks.append(MetricsFile(folder / "metrics.jsonl", start.step))
        if config.eval.every_steps:
            hooks.append(every(config.eval.every_steps, measure.hook))
        hooks.append(checkpointing(save, settings.checkpoint.every_steps))
        trainer = Trainer(
            parallel, optimizer, settings.schedule, clip=settings.clip, seed=config.seed,
            ranks=ranks, hooks=hooks, between=Balance(model), stop=interruption,
        )  # fmt: skip
        finished = trainer.fit(batches, settings.steps, start.step, start.tokens)
    if finished < settings.steps:
        log.say(f"Stopped after step {finished}; the same command goes on from there.")
        return Result(folder, False, finished, {})
    results = measure(finished) | _facts(folder) | {"samples": measure.samples()}
    _finish(config, folder, model, tokenizer, results, ranks)
    return Result(folder, True, finished, results)


def _facts(folder: Path) -> dict[str, Any]:
    """seconds: of all steps, however often the run was stopped; peak_bytes: of this process."""
    seconds = sum(line["seconds"] for line in read_lines(folder / "metrics.jsonl"))
    return {"seconds": round(seconds, 3), "peak_bytes": peak_bytes()}


def _finish(
    config: RunConfig,
    folder: Path,
    model: Transformer,
    tokenizer: Tokenizer,
    results: dict[str, Any],
    ranks: Ranks,
) -> None:
    """Write the model, its adapters merged or its weights rounded; every rank takes part.

    Adapters are also written beside it, and the results.
    """
    if is_sharded(model):
        weights, dtype = state_of(model), model.dtype
        if ranks.first:  # a model that is not sharded, to put them into
            model, _ = initial_model(config, folder)
            if config.train.adapter is not None:
                config.train.adapter.apply(model, config.seed)
            if config.train.qat is not None:
                fake_quantize(model, config.train.qat)
            model.load_state_dict(weights)
            model.dtype = dtype
    if ranks.first:
        if config.train.adapter is not None:
            _write_adapter(config, folder, model)
            merge_verified(model)
        if config.train.qat is not None:
            convert(model)
        native.save(model, tokenizer, folder / "model")
        with atomic(folder / "results.json") as fresh:
            write_json(fresh, results)
    ranks.wait()


def _write_adapter(config: RunConfig, folder: Path, model: Transformer) -> None:
    """By itself, in the format of PEFT, where its layers have names there."""
    assert config.train.adapter is not None
    # Of an upcycled model there is no folder below the adapter.
    below = config.start if config.upcycle is None else None
    base = None if below is None else model_id(below)
    try:
        peft.save(model, config.train.adapter, folder / "adapter", base)
    except NoFamilyError as error:
        log.say(f"No adapter is written by itself ({error}); it is in the model.")


def _resume(
    folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str
) -> checkpoint.Progress:
    progress = checkpoint.load(folder, objective, optimizer)
    if progress is None:
        return checkpoint.Progress(0, 0, fingerprint)
    if progress.data != fingerprint:
        raise SettingError(
            f"{folder}: its checkpoint was trained on other data, or in another order "
            "(data.*, seed, train.batch_size or train.context changed); give a new run another "
            "folder=..."
        )
    log.say(f"Resuming {folder} after step {progress.step}.")
    return progress
