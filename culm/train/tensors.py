"""The tensors of a checkpoint: gathered from a run, and restored in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from culm.dtensor import like
from culm.model.rule_updated import rule_updated
from culm.objective.objective import Objective
from culm.optim.rule import Layout, RuleOptimizer
from culm.parallel.ranks import Ranks
from culm.parallel.sharded import gathered


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message names the file and the remedy."""


def collect(objective: Objective, optimizer: RuleOptimizer, ranks: Ranks) -> dict[str, Tensor]:
    """Whole tensors by name, one after the other; only the rank that writes keeps them."""
    named: dict[str, Tensor] = {}
    for name, parameter in moving_parameters(objective).items():
        state = optimizer.state.get(parameter, {})
        named[f"parameter.{name}"] = parameter
        named |= {f"optimizer.{name}|{key}": value for key, value in state.items()}
    named |= {f"buffer.{name}": buffer for name, buffer in rule_updated(objective).items()}
    return gathered(named, ranks)


def moving_parameters(objective: Objective) -> dict[str, nn.Parameter]:
    """Parameters that change in training by name, by gradients or without."""
    moving = {p for module in objective.moving() for p in module.parameters()}
    return {n: p for n, p in objective.named_parameters() if p.requires_grad or p in moving}


@torch.no_grad()
def restore(
    objective: Objective,
    optimizer: RuleOptimizer,
    tensors: dict[str, Tensor],
    where: str,
    ranks: Ranks = Ranks(),
) -> None:
    """Put the tensors of a checkpoint where they belong; every rank calls it, with all tensors.

    where: of the checkpoint, and the remedy.

    Raises:
        CheckpointError: it belongs to a model of another shape, or to another optimizer.
    """
    named, buffers = moving_parameters(objective), rule_updated(objective)
    places: dict[str, Tensor] = {f"parameter.{name}": p for name, p in named.items()}
    places |= {f"buffer.{name}": buffer for name, buffer in buffers.items()}
    found = {key for key in tensors if not key.startswith("optimizer.")}
    every = set[str]().union(*ranks.everyone([*places]))
    for key in sorted(found ^ every):
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
            if name not in named and f"parameter.{name}" in every:
                continue  # another rank has it
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
