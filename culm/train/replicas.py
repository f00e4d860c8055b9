"""Checks that ranks hold equal copies of weights, to the bit, and names a rank that differs."""

from __future__ import annotations

import hashlib
from collections import Counter

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from culm.dtensor import local_shard
from culm.exits import REPLICAS, RESUMES
from culm.objective.objective import Objective
from culm.optim.rule import RuleOptimizer
from culm.parallel.ranks import Ranks
from culm.train.checkpoint.tensors import places, states
from culm.train.events import Event, Stepped
from culm.train.judge import TrainingError
from culm.train.listeners import Silent, is_due

# The name of a tensor, the axes along which it is divided, and where the part of a rank begins.
Place = tuple[str, tuple[str, ...], tuple[int, ...]]


class ReplicaError(TrainingError):
    """A rank holds other weights than those that hold copies of them."""

    exit_code = REPLICAS


class ReplicaCheck(Silent):
    """Compares the weights and optimizer states of all ranks every `every_steps` steps.

    Comes before the checkpoints: none is written of weights that differ.
    """

    def __init__(
        self, objective: Objective, optimizer: RuleOptimizer, ranks: Ranks, every_steps: int
    ) -> None:
        self.objective, self.optimizer, self.ranks = objective, optimizer, ranks
        self.every_steps = every_steps

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped) and is_due(event.step, self.every_steps):
            self.compare(event.step)

    def compare(self, step: int) -> None:
        """Every rank takes part, and all raise or none.

        Raises:
            ReplicaError: naming the ranks that differ, and the first tensor.
        """
        digests = self._digests()
        # Of all tensors that lie alike: few numbers, so that it costs nothing at a thousand ranks.
        if not _differing(self.ranks.everyone(_combined(digests))):
            return
        differing = _differing(self.ranks.everyone(digests))
        assert differing
        (name, *_), ranks = next(iter(differing.items()))
        words = f"ranks {', '.join(map(str, ranks))}" if len(ranks) > 1 else f"rank {ranks[0]}"
        others = "each other" if len(ranks) == self.ranks.processes else "that of the others"
        kind, _, rest = name.partition(".")
        raise ReplicaError(
            f"step {step}: the {kind} {rest} of {words} differs from {others}, so memory "
            f"or a computation there is faulty; take the machine out; then {RESUMES}"
        )

    def _digests(self) -> dict[Place, int]:
        tensors = places(self.objective) | states(self.objective, self.optimizer)
        return {(name, *_place(tensor)): _digest(tensor) for name, tensor in tensors.items()}


def _place(tensor: Tensor) -> tuple[tuple[str, ...], tuple[int, ...]]:
    if not isinstance(tensor, DTensor):
        return (), ()
    names, mesh = tensor.device_mesh.mesh_dim_names or (), tensor.device_mesh
    axes = tuple(
        name
        for number, name in enumerate(names)
        if mesh.size(number) > 1 and not tensor.placements[number].is_replicate()
    )
    if not axes:
        return (), ()
    found = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return axes, tuple(found[1])


def _digest(tensor: Tensor) -> int:
    """Of all its bits: the exclusive or of its numbers, so that one flipped bit changes it."""
    own = local_shard(tensor).detach()
    return int(torch.hash_tensor(own).view(torch.int64)) if own.numel() else 0


def _combined(digests: dict[Place, int]) -> dict[Place, int]:
    """A number for the tensors that are divided along the same axes, or along none.

    They have the same key on ranks that hold the same parts.
    """
    found: dict[Place, int] = {}
    for axes in dict.fromkeys(axes for _, axes, _ in digests):
        part = sorted((p, d) for p, d in digests.items() if p[1] == axes)
        layout = hashlib.sha256(repr([place for place, _ in part]).encode()).hexdigest()
        found[layout, axes, ()] = hash(tuple(digest for _, digest in part))
    return found


def _differing(found: list[dict[Place, int]]) -> dict[Place, list[int]]:
    """Ranks that disagree with most about a place; all of them where there is no majority."""
    differing: dict[Place, list[int]] = {}
    for place in dict.fromkeys(place for one in found for place in one):
        held = {rank: one[place] for rank, one in enumerate(found) if place in one}
        counts = Counter(held.values()).most_common()
        if len(counts) > 1:
            tied = counts[0][1] == counts[1][1]
            differing[place] = [r for r, d in held.items() if tied or d != counts[0][0]]
    return differing
