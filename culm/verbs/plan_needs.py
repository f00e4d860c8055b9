"""What a plan says of a run's needs: parameters, memory, compute and time, and what is missing."""

from __future__ import annotations

import copy
import shutil
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console

from culm.adapt.float8 import check_float8
from culm.device import memory_bytes
from culm.dtype import activations_of
from culm.model.backend import choose_backend
from culm.model.transformer import Transformer
from culm.objective.objective import Objective
from culm.parallel.check import check_divisible, check_layout, check_micro_batches, check_pipeline
from culm.parallel.parallelize import parallelize
from culm.parallel.ranks import Ranks
from culm.plan.dry_run import as_on_gpu
from culm.plan.layout import Layout, bytes_of
from culm.plan.memory_fit import ROOM, Fit, advice, largest_fit
from culm.plan.model import forward_flops
from culm.plan.needs import Needs, Step, needs_of
from culm.plan.process_memory import process_bytes
from culm.plan.speed import training_rate
from culm.plan.target import UTILISATION, Target
from culm.run.assemble import EVALUATED, Assembly, evaluation_of, training_batches
from culm.run.finish import check_outputs
from culm.run.objective import ModelLoader, build_objective, precision_of
from culm.run.settings import RunConfig
from culm.run.step import step_of
from culm.run.update import check_in_backward
from culm.source.remote import Unreachable
from culm.tokenizer.tokenizer import Tokenizer
from culm.verbs.format import count, duration, flops, size
from culm.verbs.preview import Preview

META = torch.device("meta")
NOTHING_FITS = "not even one sequence with train.activation_checkpointing=full"
NARROWEST = 24  # characters of a wrapped column
FILE_WIDTH = 100  # characters of a row where there is no terminal

T = TypeVar("T")


@dataclass
class Findings:
    """What was found out so far; a part that failed is None and a sentence in `problems`, or in
    `unread` if it is data that the target may reach.
    """

    config: RunConfig
    ranks: int
    target: Target | None = None
    problems: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def attempt(self, work: Callable[[], T]) -> T | None:
        """The result, or None where the settings do not allow it."""
        try:
            return work()
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            elsewhere = self.target is not None and isinstance(error, Unreachable)
            said = self.unread if elsewhere else self.problems
            if str(error) not in said:
                said.append(str(error))
            return None


def section(console: Console, title: str, rows: list[tuple[str, ...]]) -> None:
    """Print rows in columns; a long cell is wrapped, so that the rows fit."""
    console.print(f"\n[bold]{title}[/]")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    width = console.width if console.is_terminal else FILE_WIDTH
    others = sum(widths) - widths[1] + 2 * len(widths)
    widths[1] = min(widths[1], max(width - others, NARROWEST))
    for row in rows:
        cells = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
        for line in zip_longest(*cells, fillvalue=""):
            padded = (part.ljust(width) for part, width in zip(line, widths, strict=True))
            console.print("  " + "  ".join(padded).rstrip(), markup=False)


def _wrapped(cell: str, width: int) -> list[str]:
    """The lines of a cell; a path is not broken, so that it can be copied."""
    lines = textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False)
    return lines or [""]


def show_needs(
    console: Console,
    found: Findings,
    model: Transformer,
    tokenizer: Tokenizer | None,
    device: torch.device,
    context: int,
    seen: Preview | None,
) -> None:
    """Print what the run needs on the device, or on the target, and what is missing there."""
    config, target = _with_precision(found, device), found.target
    train, load = config.train, ModelLoader(config, META, tokenizer)
    objective = found.attempt(lambda: build_objective(config, model, META, load))
    if target is None:
        if train.precision == "fp8":
            found.attempt(lambda: check_float8(device))
        backend, dtype = train.attention_backend, activations_of(train.precision)
        found.attempt(lambda: choose_backend(device, backend, dtype, training=True))
    if objective is None:
        return
    if tokenizer is not None:
        run = Assembly(
            config if seen is None else _with_corpus(config, seen.prepared), Path(config.folder),
            META, objective, tokenizer, context, load,
            ranks=Ranks(count=config.parallel.data_ranks(found.ranks)),
        )  # fmt: skip
        _try_parts(found, run)
    for owned in objective.models().values():
        found.attempt(partial(check_layout, owned, config.parallel))
    if found.ranks > 1:
        found.attempt(lambda: check_divisible(objective, config.parallel))
    context = context if seen is None else seen.context
    layout = Layout(config.parallel, found.ranks)
    found.attempt(lambda: check_in_backward(config, found.ranks))
    if found.ranks > 1 and config.parallel.pipeline > 1:
        _try_pipeline(found, config, objective, layout)
    if target is not None or device.type == "cuda":
        as_on_gpu(objective)
    whole = copy.deepcopy(objective)
    parallelize(objective, activation_checkpointing=train.activation_checkpointing)
    step = step_of(config, context, layout, 1 if seen is None else seen.sequences)
    others = [model for model in load.loaded if model not in set(objective.models().values())]
    needs = needs_of(objective, train.optimizer, step, others)
    memory = int(target.memory) if target else memory_bytes(device)
    taken, rate = needs.memory.total, 0.0
    if memory is None or taken <= memory:
        rate = found.ranks * _rate(target, model, device, train.precision, context)
        if target is None and device.type == "cpu" and not layout.divides:
            process = process_bytes(objective, train.optimizer, step, EVALUATED)
            more = sum(bytes_of((*m.parameters(), *m.buffers())) for m in others)
            taken = taken if process is None else process + more
            if train.checkpoint.asynchronous:  # the copy that is being written
                taken += needs.checkpoint_bytes
    fit = None if memory is None else largest_fit(
        whole, train.optimizer, step, ROOM * memory, others
    )  # fmt: skip
    flops_per_step = needs.flops + _sampling_flops(config, model, context)
    capacity = f", {size(memory)}" if memory else ""
    on = f"{target.name if target else device}, {train.precision}{capacity}"
    rows = _needs(config, needs, taken, flops_per_step, step, on)
    if memory is not None:
        tensors = "" if fit is None else f"{fit.settings} ({size(fit.bytes)} of tensors)"
        rows.append(("what fits", tensors or NOTHING_FITS))
    section(console, "Needs", rows)
    found.problems += _misfits(config, needs, taken, memory, fit, target)
    if not found.problems:
        section(console, "Time", [("training", _time(config, flops_per_step, rate, target))])


def _try_pipeline(found: Findings, config: RunConfig, objective: Objective, layout: Layout) -> None:
    """What a run checks of a pipeline, and of the micro-batches of each of its steps."""
    train, parallel = config.train, config.parallel
    holders = layout.data * parallel.context
    found.attempt(partial(check_pipeline, objective, parallel, holders, train.compile))
    for rows in train.batch_sizes.distinct:
        count = -(-rows // (layout.data * train.at_once))
        found.attempt(partial(check_micro_batches, parallel, count))


def _with_precision(found: Findings, device: torch.device) -> RunConfig:
    """The settings with the precision of the device; all targets of the table prefer bf16."""
    precision: str = found.config.train.precision
    if found.target is None:
        precision = precision_of(found.config, device)
    elif precision == "auto":
        precision = "bf16"
    train = found.config.train.model_copy(update={"precision": precision})
    return found.config.model_copy(update={"train": train})


def _with_corpus(config: RunConfig, prepared: Path | None) -> RunConfig:
    """The settings with a corpus that is prepared already, if there is one."""
    if prepared is None:
        return config
    data = config.data.model_copy(update={"prepared": prepared})
    return config.model_copy(update={"data": data})


def _try_parts(found: Findings, run: Assembly) -> None:
    """What the run checks before its first step."""
    found.attempt(lambda: evaluation_of(run).check())
    found.attempt(lambda: check_outputs(run))
    if run.config.train.objective.reads == "rollouts":
        found.attempt(lambda: training_batches(run))


def _sampling_flops(config: RunConfig, model: Transformer, context: int) -> float:
    """Of a step's share of the completions, which several steps may learn from; none of a server's
    are computed here.
    """
    train = config.train
    if train.objective.reads != "rollouts" or train.rollouts.sampler.kind == "remote":
        return 0.0
    return forward_flops(model, context) * train.batch_size / train.rollouts.epochs


def _time(config: RunConfig, flops_per_step: float, rate: float, target: Target | None) -> str:
    """rate: FLOP/s of all processes."""
    seconds = flops_per_step * config.train.full_steps / rate
    about = "at least" if config.train.objective.reads == "rollouts" else "about"
    source = f"{UTILISATION:.0%} of the peak in its datasheet" if target else "one layer here"
    return f"{about} {duration(seconds)}, at the {flops(rate)}/s of {source}"


def _rate(
    target: Target | None, model: Transformer, device: torch.device, precision: str, context: int
) -> float:
    """FLOP/s of a device."""
    if target is not None:
        return target.rate(precision)
    return training_rate(model.config, device, precision, context)


def _needs(
    config: RunConfig, needs: Needs, taken: int, flops_per_step: float, step: Step, on: str
) -> list[tuple[str, ...]]:
    """taken: bytes of a process. on: the device and its precision."""
    train, memory, ranks = config.train, needs.memory, step.layout.processes
    tokens, steps = step.batch_size * step.sequences * step.context, train.full_steps
    each, rest = size(taken), taken - memory.total
    if not rest:
        each = f"{each}, plus Python and its libraries"
    used = f", {count(needs.parameters - needs.idle)} for each token" if needs.idle else ""
    return [
        ("parameters", f"{count(needs.parameters)}{used}, {count(needs.trained)} trained"),
        ("tokens", f"{count(tokens)} a step, {count(tokens * steps)} in {train.steps:,} steps"),
        ("compute", f"{flops(flops_per_step)} a step, {flops(flops_per_step * steps)} in total"),
        ("memory", f"{each}, in each of {ranks} processes" if ranks > 1 else each),
        ("", f"weights {size(memory.weights)}, gradients {size(memory.gradients)}"),
        ("", f"optimizer {size(memory.optimizer)}, activations {size(memory.activations)}"),
        *([("", f"Python, its libraries and gaps between buffers {size(rest)}")] if rest else []),
        *_exchanges(needs),
        ("device", on),
        ("checkpoint", size(needs.checkpoint_bytes)),
    ]


def _exchanges(needs: Needs) -> Iterator[tuple[str, ...]]:
    """What a process sends in a step, by axis."""
    title = "exchange"
    for axis, kinds in needs.sent.items():
        if total := sum(kinds.values()):
            parts = ", ".join(f"{kind} {size(sent)}" for kind, sent in kinds.items() if sent)
            yield title, f"{axis}: {size(total)} a step from each process ({parts})"
            title = ""


def _misfits(
    config: RunConfig,
    needs: Needs,
    taken: int,
    here: int | None,
    fit: Fit | None,
    target: Target | None = None,
) -> Iterator[str]:
    """What the machine does not have; the disk of a target is not known. taken: bytes of memory."""
    if here is not None and taken > here:
        machine = f"a device {target.name}" if target else "this machine"
        yield (
            f"train.micro_batch_size: {needs.rows} sequences need {size(taken)} of memory, "
            f"and {machine} has {size(here)}; {advice(fit)}"
        )
    if target is not None:
        return
    room = shutil.disk_usage(_existing(Path(config.folder))).free
    kept = needs.checkpoint_bytes * config.train.checkpoint.most(config.train.steps)
    if kept > room:
        yield (
            f"folder: checkpoints in {config.folder} need {size(kept)}, and its disk has "
            f"{size(room)} left; choose another folder or lower train.checkpoint.keep"
        )


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
