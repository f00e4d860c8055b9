"""Checkpoints: everything that a run needs to go on as if it had never stopped.

    checkpoints/step-40/state.safetensors   learned parameters, optimizer state
    checkpoints/step-40/state.json          step, tokens, fingerprint of the data, SHA-256

A checkpoint is written beside its place and renamed, so a half-written one is never seen. Tensors
are whole whatever the layout: a run may go on with another number of ranks.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from culm.dist.ranks import Ranks


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
    found = (folder / "checkpoints").glob("step-*/state.json")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


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
    tensors = _collect(objective, optimizer)  # every rank takes part in gathering
    if ranks.first:
        place = folder / "checkpoints" / f"step-{progress.step}"
        partial = place.with_name(f".{place.name}.partial")
        try:
            _write(partial, tensors, progress)
            if place.exists():
                shutil.rmtree(place)
            os.replace(partial, place)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(_why(place, error)) from error
        for step in steps_in(folder)[:-keep]:
            shutil.rmtree(folder / "checkpoints" / f"step-{step}")
    ranks.wait()


def _write(partial: Path, tensors: dict[str, Tensor], progress: Progress) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = partial / "state.safetensors"
    try:
        save_file(tensors, weights)
    except SafetensorError as error:
        raise OSError(errno.ENOSPC if "space" in str(error) else errno.EIO, str(error)) from error
    state = asdict(progress) | {"sha256": digest(weights)}
    (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n")
    for path in (weights, partial / "state.json", partial):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Restore the newest checkpoint in place; None when there is none yet.

    Raises:
        CheckpointError: it is damaged, or belongs to a model of another shape.
    """
    steps = steps_in(folder)
    if not steps:
        return None
    place = folder / "checkpoints" / f"step-{steps[-1]}"
    remedy = f"delete {place} to go on from " + (
        f"step {steps[-2]}" if len(steps) > 1 else "the beginning"
    )
    try:
        state = json.loads((place / "state.json").read_text())
        checksum = state.pop("sha256")
        progress = Progress(**state)
        if digest(place / "state.safetensors") != checksum:
            raise CheckpointError(f"{place}/state.safetensors does not match its checksum; {remedy}")
        tensors = load_file(place / "state.safetensors")
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{place} is damaged ({error}); {remedy}") from error
    _restore(objective, optimizer, tensors, f"{place}; {remedy}")
    return progress


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _collect(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    named = _named(objective)
    tensors = {f"parameter.{name}": _whole(p) for name, p in named.items()}
    for name, parameter in named.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}|{key}"] = _whole(value)
    return tensors


def _named(objective: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in objective.named_parameters() if p.requires_grad}


def _whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().contiguous()


@torch.no_grad()
def _restore(
    objective: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], where: str
) -> None:
    named = _named(objective)
    expected = {f"parameter.{name}" for name in named}
    found = {key for key in tensors if key.startswith("parameter.")}
    if expected != found:
        odd = sorted(expected ^ found)[0]
        raise CheckpointError(f"the run's model and its checkpoint differ at {odd}: {where}")
    for name, parameter in named.items():
        value = tensors[f"parameter.{name}"]
        if value.shape != parameter.shape:
            raise CheckpointError(
                f"{name} has shape {tuple(parameter.shape)} in the run, "
                f"{tuple(value.shape)} in its checkpoint: {where}"
            )
        parameter.copy_(_like(value, parameter))
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            name, entry = key.removeprefix("optimizer.").rsplit("|", 1)
            parameter = named[name]
            same = value.shape == parameter.shape
            optimizer.state[parameter][entry] = _like(value, parameter) if same else value


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    if isinstance(parameter, DTensor):
        value = value.to(parameter.device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)


def _why(place: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"{place}: the disk is full; free some space and start the same command again"
    return f"{place}: cannot be written ({error.strerror or error}); earlier checkpoints are kept"
