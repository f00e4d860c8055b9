"""Checkpoints: everything that a run needs to continue as if it had never stopped.

    checkpoints/step-40/state.safetensors   trained parameters, optimizer states, buffers that a
                                            rule updates, and the state of the batches
    checkpoints/step-40/state.json          step, tokens, fingerprint of the data, SHA-256 of all

A checkpoint is complete or not there. Its tensors are whole, whatever the layout: a run may resume
on another number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from culm import files
from culm.model.rule_updated import rule_updated
from culm.objective.objective import Objective
from culm.optim.rule import Layout, RuleOptimizer, check_layouts
from culm.parallel.ranks import Ranks
from culm.parallel.sharded import full_tensor, is_sharded, like
from culm.safetensors import write_safetensors

WEIGHTS, STATE = "state.safetensors", "state.json"
BATCHES = "batches."


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message names the file and the remedy."""


@dataclass(frozen=True)
class Progress:
    """How far a run is. data: fingerprint of the dataset that its steps index."""

    step: int
    tokens: int
    data: str


def steps_in(folder: Path) -> list[int]:
    """Steps of the finished checkpoints in a run folder, in order."""
    found = (folder / "checkpoints").glob(f"step-*/{STATE}")
    numbers = (path.parent.name.removeprefix("step-") for path in found)
    return sorted(int(number) for number in numbers if number.isdecimal())


Done = Callable[[Path], None]


class Store(Protocol):
    """Where the checkpoints of a run are kept, in some form."""

    def save(self, progress: Progress, state: Mapping[str, Tensor], done: Done) -> None:
        """Start to write a checkpoint; `done` gets its folder once it is on the disk.

        Every rank calls it, and `done` is called on every rank.
        """
        ...

    def load(self) -> tuple[Progress, dict[str, Tensor]] | None:
        """Restore the newest checkpoint in place; None if there is none. Every rank calls it."""
        ...

    def wait(self) -> None:
        """Return when all that was saved is on the disk."""
        ...


class WholeStore:
    """Checkpoints of whole tensors, gathered and written by one rank before `save` returns.

    state: what the batches need to continue exactly (`culm.train.trainer.Batches`).
    """

    def __init__(
        self,
        folder: Path,
        objective: Objective,
        optimizer: RuleOptimizer,
        keep: int = 2,
        ranks: Ranks = Ranks(),
    ) -> None:
        check_layouts(optimizer, is_sharded(objective))
        self.folder, self.keep, self.ranks = folder, keep, ranks
        self.objective, self.optimizer = objective, optimizer

    def save(self, progress: Progress, state: Mapping[str, Tensor], done: Done) -> None:
        """Write `checkpoints/step-N`, then remove all but the newest `keep`."""
        # Every rank takes part in gathering.
        tensors = _collect(self.objective, self.optimizer, self.ranks.writer)
        path = self.folder / "checkpoints" / f"step-{progress.step}"
        if self.ranks.writer:
            tensors |= {f"{BATCHES}{name}": value.contiguous() for name, value in state.items()}
            self._write(path, tensors, progress)
            for step in steps_in(self.folder)[: -self.keep]:
                shutil.rmtree(path.parent / f"step-{step}")
        self.ranks.wait()
        done(path)

    def load(self) -> tuple[Progress, dict[str, Tensor]] | None:
        """Restore the newest checkpoint in place, and give what it holds for the batches.

        Raises:
            CheckpointError: it is damaged, or belongs to a model of another shape.
        """
        progress = verify(self.folder)
        if progress is None:
            return None
        path, remedy = _newest(self.folder)
        tensors = load_file(path / WEIGHTS)
        names = [name for name in tensors if name.startswith(BATCHES)]
        state = {name.removeprefix(BATCHES): tensors.pop(name).clone() for name in names}
        where = f"{path}; give this run another folder=..., or {remedy}"
        _restore(self.objective, self.optimizer, tensors, where)
        return progress, state

    def wait(self) -> None:
        """`save` has written everything when it returns."""

    def _write(self, path: Path, tensors: dict[str, Tensor], progress: Progress) -> None:
        for unfinished in path.parent.glob(".step-*"):  # of a process that was killed while saving
            shutil.rmtree(unfinished, ignore_errors=True)
        try:
            with files.atomic(path) as fresh:
                fresh.mkdir()
                write_safetensors(fresh / WEIGHTS, tensors)
                state = asdict(progress)
                files.write_json(fresh / STATE, {**state, "sha256": _seal(fresh / WEIGHTS, state)})
        except OSError as error:
            raise CheckpointError(
                f"{error}; make room there and start the same command again: "
                "it resumes from the last checkpoint"
            ) from error


def verify(folder: Path) -> Progress | None:
    """The progress of the newest checkpoint, after its checksum was verified.

    Raises:
        CheckpointError: it is damaged.
    """
    if not steps_in(folder):
        return None
    path, remedy = _newest(folder)
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        checksum = state.pop("sha256")
        progress = Progress(**state)
        if _seal(path / WEIGHTS, state) != checksum:
            raise ValueError("its SHA-256 differs")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        readable = isinstance(error, OSError | ValueError)
        reason = str(error) if readable else f"{STATE} does not describe a checkpoint"
        raise CheckpointError(f"{path}: damaged ({reason}); {remedy}") from error
    return progress


def _newest(folder: Path) -> tuple[Path, str]:
    """The newest checkpoint, and the remedy if it cannot be used."""
    *earlier, last = steps_in(folder)
    path = folder / "checkpoints" / f"step-{last}"
    before = f"step {earlier[-1]}" if earlier else "the beginning"
    return path, f"delete {path} to resume from {before}"


def _seal(weights: Path, state: dict) -> str:
    text = files.sha256(weights) + json.dumps(state, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _collect(objective: Objective, optimizer: RuleOptimizer, keep: bool) -> dict[str, Tensor]:
    """Whole tensors by name, one after the other; only the rank that writes keeps them."""
    tensors = {}
    for name, parameter in _named(objective).items():
        state = optimizer.state.get(parameter, {})
        entries = {f"optimizer.{name}|{key}": value for key, value in state.items()}
        for key, value in {f"parameter.{name}": parameter, **entries}.items():
            gathered = full_tensor(value.detach())
            if keep:
                tensors[key] = gathered.cpu().contiguous()
    if keep:
        for name, buffer in rule_updated(objective).items():
            tensors[f"buffer.{name}"] = buffer.detach().cpu().clone()
    return tensors


def _named(objective: Objective) -> dict[str, nn.Parameter]:
    """Parameters that change in training, by gradients or without."""
    moving = {p for module in objective.moving() for p in module.parameters()}
    return {n: p for n, p in objective.named_parameters() if p.requires_grad or p in moving}


@torch.no_grad()
def _restore(
    objective: Objective, optimizer: RuleOptimizer, tensors: dict[str, Tensor], where: str
) -> None:
    named, buffers = _named(objective), rule_updated(objective)
    places: dict[str, Tensor] = {f"parameter.{name}": p for name, p in named.items()}
    places |= {f"buffer.{name}": buffer for name, buffer in buffers.items()}
    found = {key for key in tensors if not key.startswith("optimizer.")}
    for key in sorted(found ^ places.keys()):
        holder = "the checkpoint" if key in found else "the run's model"
        raise CheckpointError(f"{key.partition('.')[2]}: only {holder} has it: {where}")
    for key, place in places.items():
        value, name = tensors[key], key.partition(".")[2]
        if value.shape != place.shape:
            raise CheckpointError(
                f"{name}: shape {tuple(place.shape)} in the run, {tuple(value.shape)} in the "
                f"checkpoint: {where}"
            )
        place.copy_(like(value, place))
    layouts = optimizer.layouts()
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            name, entry = key.removeprefix("optimizer.").rsplit("|", 1)
            parameter = named[name]
            if entry not in layouts[parameter]:
                raise CheckpointError(f"{name}: the optimizer has no state {entry!r}: {where}")
            layout = layouts[parameter][entry]
            optimizer.state[parameter][entry] = _placed(value, parameter, layout)


def _placed(value: Tensor, parameter: nn.Parameter, layout: Layout) -> Tensor:
    """A copy, since the file stays open as long as its own tensors are in use."""
    if layout == "parameter":
        return like(value.clone(), parameter)
    return value.clone().to(parameter.device)
