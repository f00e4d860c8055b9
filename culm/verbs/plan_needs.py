"""What a plan says of a run's needs: parameters, memory, compute and time, and what is missing."""

from __future__ import annotations

import copy
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from culm.device import memory_bytes
from culm.dtype import activations_of
from culm.model.backend import Choice
from culm.model.transformer import Transformer
from culm.objective.objective import Objective
from culm.parallel.parallelize import parallelize
from culm.plan.dry_run import set_backend
from culm.plan.layout import Layout, bytes_of
from culm.plan.memory_fit import ROOM, Fit, advice, largest_fit
from culm.plan.model import forward_flops
from culm.plan.needs import Needs, Step, needs_of
from culm.plan.process_memory import process_bytes
from culm.plan.speed import training_rate
from culm.plan.target import UTILISATION, Target
from culm.run.assemble import EVALUATED
from culm.run.objective import ModelLoader, build_objective
from culm.run.settings import RunConfig
from culm.run.step import step_of
from culm.tokenizer.tokenizer import Tokenizer
from culm.train.checkpoint.folder import Progress
from culm.verbs.format import count, duration, flops, size
from culm.verbs.plan_checks import (
    META,
    Findings,
    assembly_of,
    try_kernels,
    try_layout,
    try_parts,
    with_precision,
)
from culm.verbs.preview import Preview

NOTHING_FITS = "not even one sequence with train.activation_checkpointing=full"
NARROWEST = 24  # characters of a wrapped column
FILE_WIDTH = 100  # characters of a row where there is no terminal


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


@dataclass(frozen=True)
class Machine:
    """What one process of a run is on: the device here, or one of a target."""

    device: torch.device
    target: Target | None
    precision: str
    backend: Choice

    @property
    def memory(self) -> int | None:
        """Bytes of one device, where they are known."""
        return int(self.target.memory) if self.target else memory_bytes(self.device)

    @property
    def is_gpu(self) -> bool:
        return self.target is not None or self.device.type == "cuda"

    def __str__(self) -> str:
        capacity = f", {size(self.memory)}" if self.memory else ""
        return f"{self.target.name if self.target else self.device}, {self.precision}{capacity}"


def show_needs(
    console: Console,
    found: Findings,
    model: Transformer,
    tokenizer: Tokenizer | None,
    device: torch.device,
    context: int,
    seen: Preview | None,
    then: Progress | None = None,
) -> None:
    """Print what the run needs on the device, or on the target, and what is missing there.

    then: the checkpoint from which it would resume.
    """
    config = with_precision(found, device)
    load = ModelLoader(config, META, tokenizer, compared=then is not None)
    objective = found.attempt(lambda: build_objective(config, model, META, load))
    backend = try_kernels(found, config, device)
    if objective is None:
        return
    if tokenizer is not None:
        run = assembly_of(config, found.ranks, objective, tokenizer, context, load, seen)
        try_parts(found, run, None if seen is None else seen.data, then)
    layout = Layout(config.parallel, found.ranks)
    try_layout(found, config, objective, layout)
    context = context if seen is None else seen.context
    step = step_of(config, context, layout, 1 if seen is None else seen.sequences)
    others = [model for model in load.loaded if model not in set(objective.models().values())]
    machine = Machine(device, found.target, config.train.precision, backend)
    flops_per_step, rate = _show(console, found, config, objective, step, others, machine)
    if not found.problems:
        time = _time(config, flops_per_step, found.ranks * rate, found.target)
        section(console, "Time", [("training", time)])


def _show(
    console: Console, found: Findings, config: RunConfig, objective: Objective, step: Step,
    others: Sequence[nn.Module], machine: Machine,
) -> tuple[float, float]:  # fmt: skip
    """Print what a process needs and what would fit; gives the FLOPs of a step, and the FLOP/s of
    a device.

    others: models that the objective does not own.
    """
    train, memory = config.train, machine.memory
    set_backend(objective, machine.backend, machine.is_gpu, activations_of(train.precision))
    whole = copy.deepcopy(objective)
    parallelize(objective, activation_checkpointing=train.activation_checkpointing)
    needs = needs_of(objective, train.optimizer, step, others)
    fits = memory is None or needs.memory.total <= memory
    rate = _rate(machine, objective.model, step.context) if fits else 0.0
    taken = _taken(config, needs, objective, step, others, machine) if fits else needs.memory.total
    flops_per_step = needs.flops + _sampling_flops(config, objective.model, step.context)
    rows, fit = _needs(config, needs, taken, flops_per_step, step, str(machine)), None
    if memory is not None:
        fit = largest_fit(whole, train.optimizer, step, ROOM * memory, others)
        tensors = "" if fit is None else f"{fit.settings} ({size(fit.bytes)} of tensors)"
        rows.append(("what fits", tensors or NOTHING_FITS))
    section(console, "Needs", rows)
    found.problems += _misfits(config, needs, taken, memory, fit, found.target)
    return flops_per_step, rate


def _taken(
    config: RunConfig, needs: Needs, objective: Objective, step: Step, others: Sequence[nn.Module],
    machine: Machine,
) -> int:  # fmt: skip
    """Bytes of a process: all of it on a CPU, of which kernels must have run, otherwise tensors."""
    taken = needs.memory.total
    if machine.target is not None or machine.device.type != "cpu" or step.layout.divides:
        return taken
    process = process_bytes(objective, config.train.optimizer, step, EVALUATED)
    if process is not None:
        taken = process + sum(bytes_of((*m.parameters(), *m.buffers())) for m in others)
    if config.train.checkpoint.asynchronous:  # the copy that is being written
        taken += needs.checkpoint_bytes
    return taken


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


def _rate(machine: Machine, model: Transformer, context: int) -> float:
    """FLOP/s of a device."""
    if machine.target is not None:
        return machine.target.rate(machine.precision)
    return training_rate(model.config, machine.device, machine.precision, context, machine.backend)


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
