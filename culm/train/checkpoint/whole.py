"""Checkpoints of whole tensors: gathered on one rank, in one file, whatever the layout.

state.safetensors   all tensors (`culm.train.checkpoint.tensors`)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from culm.dtensor import full_tensor, like
from culm.objective.objective import Trained
from culm.optim.rule import RuleOptimizer
from culm.parallel.ranks import Ranks
from culm.safetensors import write_safetensors
from culm.train.checkpoint.tensors import (
    BATCHES,
    CheckpointError,
    Kind,
    check_fit,
    moving_parameters,
    places,
    state_like,
    state_of_parameter,
    states,
)
from culm.train.guard import first_unusable

WEIGHTS = "state.safetensors"


class Whole:
    """Written by one rank, read by all."""

    name = "whole"

    def __init__(self, objective: Trained, optimizer: RuleOptimizer) -> None:
        self.objective, self.optimizer = objective, optimizer

    def capture(self, state: Mapping[str, Tensor], ranks: Ranks, copy: bool) -> dict[str, Tensor]:
        """One tensor after the other is gathered; only the rank that writes keeps them."""
        captured = {}
        tensors = places(self.objective) | states(self.objective, self.optimizer)
        for key, value in tensors.items():
            whole = full_tensor(value)
            if ranks.writer:
                captured[key] = _on_cpu(whole, copy)
        if ranks.writer:
            captured |= {f"{BATCHES}{name}": _on_cpu(value, copy) for name, value in state.items()}
        return captured

    def write(self, captured: dict[str, Tensor], folder: Path, ranks: Ranks) -> list[str]:
        if not ranks.writer:
            return []
        write_safetensors(folder / WEIGHTS, captured)
        return [WEIGHTS]

    @torch.no_grad()
    def read(self, path: Path, where: str, ranks: Ranks) -> dict[str, Tensor]:
        tensors = load_file(path / WEIGHTS)
        kinds = {key: Kind(value.shape, value.dtype) for key, value in tensors.items()}
        check_fit(self.objective, self.optimizer, kinds, where, ranks)
        if (broken := first_unusable(tensors)) is not None:
            raise CheckpointError(
                f"{path}: {broken} is not finite; delete it to resume from the one before"
            )
        for key, place in places(self.objective).items():
            place.copy_(like(tensors[key], place))
        named = moving_parameters(self.objective)
        self.optimizer.state.clear()  # of a run that goes back
        for key, value in tensors.items():
            name, entry = state_of_parameter(key)
            if (parameter := named.get(name)) is not None:
                # A copy, since the file stays open as long as its own tensors are in use.
                placed = state_like(value.clone(), parameter, entry, self.optimizer)
                self.optimizer.state[parameter][entry] = placed
        names = [name for name in tensors if name.startswith(BATCHES)]
        return {name.removeprefix(BATCHES): tensors[name].clone() for name in names}


def _on_cpu(tensor: Tensor, copy: bool) -> Tensor:
    return tensor.detach().to("cpu", copy=copy).contiguous()
