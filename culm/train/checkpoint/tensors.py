"""The tensors of a checkpoint: what a run has, and where each of a checkpoint belongs.

    parameter.NAME          what is trained, or moves without gradients
    optimizer.NAME|STATE    the states of the optimizer for it
    buffer.NAME             buffers that training updates by a rule
    batches.NAME            what the batches need to continue

Names are those of the objective, whatever the layout: ranks may hold different ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from culm.dtensor import like
from culm.exits import CHECKPOINT, RunError
from culm.model.rule_updated import rule_updated
from culm.objective.objective import Trained
from culm.optim.rule import RuleOptimizer
from culm.parallel.ranks import Ranks

OPTIMIZER, BATCHES = "optimizer.", "batches."


class CheckpointError(RunError):
    """A checkpoint that cannot be written or read; the message names the file and the remedy."""

    exit_code = CHECKPOINT


class NotWritten(CheckpointError):
    """A disk refused a checkpoint; those before are as they were, and the next one may succeed."""


class Kind(NamedTuple):
    """Of a whole tensor."""

    shape: torch.Size
    dtype: torch.dtype


def moving_parameters(objective: Trained) -> dict[str, nn.Parameter]:
    """Parameters that change in training by name, by gradients or without."""
    moving = {p for module in objective.moving() for p in module.parameters()}
    return {n: p for n, p in objective.named_parameters() if p.requires_grad or p in moving}


def places(objective: Trained) -> dict[str, Tensor]:
    """Parameters and buffers that a checkpoint holds, as they are on this rank."""
    named = {f"parameter.{n}": p.detach() for n, p in moving_parameters(objective).items()}
    return named | {f"buffer.{n}": buffer for n, buffer in rule_updated(objective).items()}


def states(objective: Trained, optimizer: RuleOptimizer) -> dict[str, Tensor]:
    """The states of the optimizer for the parameters of this rank."""
    return {
        f"{OPTIMIZER}{name}|{key}": value.detach()
        for name, parameter in moving_parameters(objective).items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def names_differ(objective: Trained, ranks: Ranks) -> bool:
    """Whether ranks hold different parameters, as the stages of a pipeline do; every rank asks."""
    names = "\n".join(sorted(places(objective)))
    return len(set(ranks.everyone(hashlib.sha256(names.encode()).hexdigest()))) > 1


def check_fit(
    objective: Trained, optimizer: RuleOptimizer, found: Mapping[str, Kind], where: str,
    ranks: Ranks,
) -> None:  # fmt: skip
    """Compare a run with the tensors of a checkpoint; every rank takes part, and all raise or none.

    found: all tensors of the checkpoint. where: the checkpoint, and the remedy.

    Raises:
        CheckpointError: it belongs to a model of another shape or precision, or to another
            optimizer.
    """
    own = places(objective)
    names = set(own)
    if names_differ(objective, ranks):
        names = names.union(*ranks.everyone(names))
    held = {key for key in found if not key.startswith((OPTIMIZER, BATCHES))}
    for key in sorted(held ^ names):
        holder = "the checkpoint" if key in held else "the run's model"
        raise CheckpointError(f"{key.partition('.')[2]}: only {holder} has it: {where}")
    ranks.attempt(lambda: _check_own(objective, optimizer, own, found, where))


def _check_own(
    objective: Trained, optimizer: RuleOptimizer, own: Mapping[str, Tensor],
    found: Mapping[str, Kind], where: str,
) -> None:  # fmt: skip
    for key, place in own.items():
        name, kind = key.partition(".")[2], found[key]
        if kind.dtype != place.dtype:
            raise CheckpointError(
                f"{name}: {place.dtype} in the run, {kind.dtype} in the checkpoint: {where}"
            )
        if kind.shape != place.shape:
            raise CheckpointError(
                f"{name}: shape {tuple(place.shape)} in the run, {tuple(kind.shape)} in the "
                f"checkpoint: {where}"
            )
    layouts, named = optimizer.layouts(), moving_parameters(objective)
    for key in found:
        name, entry = state_of_parameter(key)
        if name in named and entry not in layouts.get(named[name], {}):
            raise CheckpointError(f"{name}: the optimizer has no state {entry!r}: {where}")


def state_of_parameter(key: str) -> tuple[str, str]:
    """The name of a parameter and of its state; empty where the key is not of the optimizer."""
    name, _, entry = key.rpartition("|")
    return (name.removeprefix(OPTIMIZER), entry) if key.startswith(OPTIMIZER) else ("", "")


def state_like(
    value: Tensor, parameter: nn.Parameter, entry: str, optimizer: RuleOptimizer
) -> Tensor:
    """A state of the optimizer placed as its rule says; value: all of it, the same on all ranks."""
    if optimizer.layouts()[parameter][entry] == "parameter":
        return like(value, parameter)
    return value.to(parameter.device)
