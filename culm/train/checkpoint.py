"""Checkpoints: everything that a run needs to go on as if it had never stopped.

    checkpoints/step-40/state.safetensors   learned parameters, optimizer state, adjusted buffers
    checkpoints/step-40/state.json          step, tokens, fingerprint of the data, SHA-256 of all

A checkpoint is whole or not there. Its tensors are whole whatever the layout: a run may go on with
another number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from culm import files
from culm.model.rule_updated import rule_updated
from culm.parallel.ranks import Ranks
from culm.parallel.sharded import full_tensor, like
from culm.safetensors import write_safetensors

WEIGHTS, STATE = "state.safetensors", "state.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message names the file and the remedy."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands. `data`: fingerprint of the dataset that its steps index."""

    step: int
    tokens: int
    data: str


def steps_in(folder: Path) -> list[int]:
    """Steps of the finished checkpoints in a run folder, in order."""
    found = (folder / "checkpoints").glob(f"step-*/{STATE}")
    numbers = (path.parent.name.removeprefix("step-") for path in found)
    return sorted(int(number) for number in numbers if number.isdecimal())


def save(
    folder: Path,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    keep: int,
    ranks: Ranks,
) -> None:
    """Write `checkpoints/step-N`, then remove all but the newest `keep`."""
    tensors = _collect(objective, optimizer, ranks.first)  # every rank takes part in gathering
    if ranks.first:
        path = folder / "checkpoints"
        for unfinished in path.glob(".step-*"):  # of a process that was killed while it saved
            shutil.rmtree(unfinished, ignore_errors=True)
        try:
            with files.atomic(path / f"step-{progress.step}") as fresh:
                fresh.mkdir()
                write_safetensors(fresh / WEIGHTS, tensors)
                state = asdict(progress)
                files.write_json(fresh / STATE, {**state, "sha256": _seal(fresh / WEIGHTS, state)})
        except OSError as error:
            raise CheckpointError(
                f"{error}; make room there and start the same command again: "
                "it goes on from the last checkpoint"
            ) from error
        for step in steps_in(folder)[:-keep]:
            shutil.rmtree(path / f"step-{step}")
    ranks.wait()


def load(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Restore the newest checkpoint in place; None when there is none yet.

    Raises:
        CheckpointError: it is damaged, or belongs to a model of another shape.
    """
    progress = verify(folder)
    if progress is not None:
        path, remedy = _newest(folder)
        where = f"{path}; give this run another folder=..., or {remedy}"
        _restore(objective, optimizer, load_file(path / WEIGHTS), where)
    return progress


def verify(folder: Path) -> Progress | None:
    """How far the newest checkpoint is, once every byte of it is seen to be as it was written.

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
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path}: damaged ({reason}); {remedy}") from error
    return progress


def _newest(folder: Path) -> tuple[Path, str]:
    """The newest checkpoint, and what to do if it cannot be used."""
    *earlier, last = steps_in(folder)
    path = folder / "checkpoints" / f"step-{last}"
    before = f"step {earlier[-1]}" if earlier else "the beginning"
    return path, f"delete {path} to go on from {before}"


def _seal(weights: Path, state: dict) -> str:
    text = files.sha256(weights) + json.dumps(state, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _collect(
    objective: nn.Module, optimizer: torch.optim.Optimizer, keep: bool
) -> dict[str, Tensor]:
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
        tensors |= {
            f"buffer.{n}": t.detach().cpu().clone() for n, t in rule_updated(objective).items()
        }
    return tensors


def _named(objective: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in objective.named_parameters() if p.requires_grad}


@torch.no_grad()
def _restore(
    objective: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], where: str
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
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            name, entry = key.removeprefix("optimizer.").rsplit("|", 1)
            optimizer.state[named[name]][entry] = _state(value, named[name])


def _state(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """A copy, since the file stays open as long as its own tensors are in use."""
    if value.shape == parameter.shape:
        return like(value.clone(), parameter)
    return value.clone().to(parameter.device)  # a count of steps
