"""`culm plan`: what a run would do, need and learn from. Nothing is started."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from rich.console import Console

from culm.config import SettingError
from culm.device import choose_device, memory_bytes
from culm.dtype import DTYPES
from culm.model.backend import choose_backend
from culm.model.transformer import Transformer
from culm.objective.objective import Objective
from culm.parallel.parallelize import parallelize
from culm.parallel.ranks import Ranks
from culm.plan.model import forward_flops
from culm.plan.needs import Needs, needs_of
from culm.plan.speed import training_rate
from culm.run.assemble import (
    Assembly,
    evaluation_of,
    training_batches,
)
from culm.run.initial import context_of, model_from_start, source_of
from culm.run.objective import ModelLoader, build_objective, precision_of
from culm.run.settings import RunConfig
from culm.tokenizer.tokenizer import Tokenizer
from culm.train.checkpoint import verify
from culm.train.run_folder import check
from culm.train.trackers.tracker import TrackerConfig
from culm.verbs.format import count, duration, flops, size
from culm.verbs.preview import preview, tokenizer_of

SHOWN = 600  # characters of a sample
META = torch.device("meta")

T = TypeVar("T")


@dataclass
class Findings:
    """What was found out so far; a part that failed is None and a sentence in `problems`."""

    config: RunConfig
    ranks: int
    problems: list[str] = field(default_factory=list)

    def attempt(self, work: Callable[[], T]) -> T | None:
        """The result, or None where the settings do not allow it."""
        try:
            return work()
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None


def show_plan(config: RunConfig, origins: dict[str, str], ranks: int = 1) -> None:
    """Print settings, samples, needs and problems; writes in a temporary folder only.

    ranks: processes that would share the run, each on a device like the one here.

    Raises:
        SettingError: every problem that would end the run.
    """
    console = Console(highlight=False, soft_wrap=True)
    found = Findings(config, ranks)
    _section(console, "Settings", _settings(config, origins))
    model, tokenizer = found.attempt(lambda: _parts(config)) or (None, None)
    if config.model is not None:
        model = config.model.build(device="meta")
        tokenizer = found.attempt(lambda: tokenizer_of(config))
    context = (found.attempt(lambda: context_of(config, model)) if model else None) or 0
    if tokenizer is not None and context:
        with TemporaryDirectory() as temporary:
            seen = found.attempt(
                lambda: preview(config, tokenizer, Path(temporary), context, ranks)
            )
        if seen is not None:
            context = seen.context
            _section(console, "Learned from", seen.facts)
            _show_samples(console, seen.samples)
    folder = Path(config.folder)
    found.attempt(lambda: check(folder, config, source_of(config)))
    trackers: tuple[TrackerConfig, ...] = config.track
    for tracker in trackers:
        found.attempt(tracker.check)
    progress = found.attempt(lambda: verify(folder))
    if progress is not None:
        console.print(f"\nResumes after step {progress.step:,} of {config.train.steps:,}.")
    device = found.attempt(lambda: choose_device(config.device))
    if model is not None and device is not None and context:
        _show_needs(console, found, model, tokenizer, device, context)
    if found.problems:
        raise SettingError("this run cannot start:\n" + "\n".join(found.problems))
    console.print("No problem found. Start it with `culm train` and the same settings.")


def _parts(config: RunConfig) -> tuple[Transformer | None, Tokenizer | None]:
    """Of the model that the run starts from, on the meta device."""
    if config.start is None:
        return None, None
    model, tokenizer = model_from_start(config)
    model.to("meta").tie()
    return model, tokenizer


def _section(console: Console, title: str, rows: list[tuple[str, ...]]) -> None:
    console.print(f"\n[bold]{title}[/]")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        console.print("  " + "  ".join(cells).rstrip(), markup=False)


def _settings(config: RunConfig, origins: dict[str, str]) -> list[tuple[str, ...]]:
    """Name, value and origin of every setting."""
    leaves = _leaves(config.model_dump(mode="json"))
    return [(name, str(value), _origin(name, origins)) for name, value in leaves]


def _origin(name: str, origins: dict[str, str]) -> str:
    """Of the setting itself, of what it is a part of, or of its parts."""
    name = name.partition("[")[0]
    for known, origin in reversed(origins.items()):
        if f"{name}.".startswith(f"{known}.") or known.startswith(f"{name}."):
            return origin
    return "default"


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for index, item in enumerate(value):
                given = [f"{key}={part}" for key, part in (item or {}).items() if part is not None]
                yield f"{prefix}{name}[{index}]", ", ".join(given) or "none"
        elif value is not None:
            yield f"{prefix}{name}", value


def _show_samples(console: Console, samples: list[list[tuple[str, bool]]]) -> None:
    console.print("\n[bold]Samples[/], learned text in «»")
    for spans in samples:
        left = SHOWN
        for text, learned in spans:
            shown = text[:left]
            left -= len(shown)
            style = "green" if learned else "dim"
            console.print(f"«{shown}»" if learned else shown, style=style, markup=False, end="")
            if not left:
                console.print(" ...", end="")
                break
        console.print("\n")


# -- what it needs ---------------------------------------------------------------------------


def _show_needs(
    console: Console,
    found: Findings,
    model: Transformer,
    tokenizer: Tokenizer | None,
    device: torch.device,
    context: int,
) -> None:
    train = found.config.train
    precision = precision_of(found.config, device)
    plain = train.model_copy(update={"precision": precision})
    config = found.config.model_copy(update={"train": plain})
    dtype = DTYPES[precision]
    found.attempt(lambda: choose_backend(device, train.attention_backend, dtype, training=True))
    load = ModelLoader(config, META, tokenizer)
    objective = found.attempt(lambda: build_objective(config, model, META, load))
    if objective is None:
        return
    if tokenizer is not None:
        run = Assembly(
            config, Path(config.folder), META, objective, tokenizer, context, load,
            ranks=Ranks(count=found.ranks),
        )  # fmt: skip
        found.attempt(lambda: evaluation_of(run).check())
        if train.objective.reads == "rollouts":
            found.attempt(lambda: training_batches(run))
    parallelize(objective, activation_checkpointing=train.activation_checkpointing)
    needs = _counted(config, objective, context, found.ranks, load)
    sampled = train.objective.reads == "rollouts"
    per_step = needs.flops
    if sampled:  # the completions, which several steps may learn from
        per_step += forward_flops(model, context) * train.batch_size / train.rollouts.epochs
    here = memory_bytes(device)
    on = f"{device}, {precision}" + (f", {size(here)}" if here else "")
    row = config.data.format.group * context
    _section(console, "Needs", _needs(config, needs, per_step, row, found.ranks, on))
    found.problems += _misfits(config, needs, here)
    if not found.problems:
        rate = found.ranks * training_rate(model.config, device, precision, context)
        seconds = per_step * train.steps / rate
        least = "at least " if sampled else "about "
        time = f"{least}{duration(seconds)}, at the {flops(rate)}/s of one layer here"
        _section(console, "Time", [("training", time)])


def _counted(
    config: RunConfig, objective: Objective, context: int, ranks: int, load: ModelLoader
) -> Needs:
    """Counted on the meta device, by the very modules that will run."""
    train, own = config.train, set(objective.models().values())
    group = config.data.format.group
    return needs_of(
        objective, train.optimizer, context, batch_size=train.batch_size, at_once=train.at_once,
        sequences=group, packed=train.objective.reads == "documents",
        columns=train.objective.columns, replicas=config.parallel.replicas, ranks=ranks,
        others=[model for model in load.loaded if model not in own],
    )  # fmt: skip


def _needs(
    config: RunConfig, needs: Needs, per_step: float, row: int, ranks: int, on: str
) -> list[tuple[str, ...]]:
    """row: tokens of one. on: the device and its precision."""
    steps, memory, tokens = config.train.steps, needs.memory, config.train.batch_size * row
    each = f"{size(memory.total)}, plus Python and its libraries"
    used = f", {count(needs.parameters - needs.idle)} for each token" if needs.idle else ""
    return [
        ("parameters", f"{count(needs.parameters)}{used}, {count(needs.trained)} trained"),
        ("tokens", f"{count(tokens)} a step, {count(tokens * steps)} in {steps:,} steps"),
        ("compute", f"{flops(per_step)} a step, {flops(per_step * steps)} in total"),
        ("memory", f"{each}, in each of {ranks} processes" if ranks > 1 else each),
        ("", f"weights {size(memory.weights)}, gradients {size(memory.gradients)}"),
        ("", f"optimizer {size(memory.optimizer)}, activations {size(memory.activations)}"),
        ("device", on),
        ("checkpoint", size(needs.checkpoint_bytes)),
    ]


def _misfits(config: RunConfig, needs: Needs, here: int | None) -> Iterator[str]:
    """What the machine does not have."""
    if here is not None and needs.memory.total > here:
        rows = config.train.micro_batch_size or config.train.batch_size
        yield (
            f"train.micro_batch_size: {rows} sequences need {size(needs.memory.total)} of memory, "
            f"and this machine has {size(here)}; use a smaller micro-batch, "
            "train.activation_checkpointing=true, an adapter, or a smaller model"
        )
    room = shutil.disk_usage(_existing(Path(config.folder))).free
    kept = needs.checkpoint_bytes * (config.train.checkpoint.keep + 1)
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
