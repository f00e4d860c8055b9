"""The largest micro-batch, with the cheapest activation checkpointing, that fits a memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from culm.objective.objective import Objective
from culm.optim.optimizer import OptimizerConfig
from culm.parallel.check import may_have
from culm.parallel.parallelize import parallelize
from culm.plan.needs import DryRuns, Step, needs_of

Recomputed = Literal["none", "selective", "full"]
BY_COST: Sequence[Recomputed] = ("none", "selective", "full")
ROOM = 0.92  # of a device is for tensors; the rest for its context, workspaces and gaps


@dataclass(frozen=True)
class Fit:
    """rows: of a micro-batch. bytes: of tensors at the peak."""

    rows: int
    activation_checkpointing: Recomputed
    bytes: int

    @property
    def settings(self) -> str:
        """As they are pasted into a command."""
        return (
            f"train.micro_batch_size={self.rows} "
            f"train.activation_checkpointing={self.activation_checkpointing}"
        )


def largest_fit(
    objective: Objective,
    optimizer: OptimizerConfig,
    step: Step,
    limit: float,
    others: Sequence[nn.Module] = (),
) -> Fit | None:
    """What is fastest of all that needs no more than `limit` bytes of tensors; None if nothing is.

    Computing activations again costs up to a third more time, fewer rows at once cost little. So
    rows are given up first, down to one. The batch size stays as it is.

    objective: on the meta device, whole and without activation checkpointing; it is left so.
    step: of the run; its micro-batch is not considered.
    """

    def needed(rows: int, recomputed: Recomputed, dry_runs: DryRuns) -> int:
        tried = copy.deepcopy(objective)
        parallelize(tried, activation_checkpointing=recomputed)
        smaller = replace(step, at_once=rows)
        needs = needs_of(tried, optimizer, smaller, others, count_flops=False, dry_runs=dry_runs)
        return needs.memory.total

    whole = -(-step.batch_size // step.layout.data)
    # With updates in the backward a step has one micro-batch.
    sizes = [whole] if step.in_backward else _parts(whole)
    sizes = [rows for rows in sizes if may_have(step.layout.settings, -(-whole // rows))]
    if not sizes:
        return None
    for recomputed in BY_COST:
        found: Fit | None = None
        dry_runs = DryRuns()
        low, high = 0, len(sizes) - 1
        at = low  # one row first: most that do not fit are refused by it
        while low <= high:
            bytes = needed(sizes[at], recomputed, dry_runs)
            if bytes <= limit:
                found, low = Fit(sizes[at], recomputed, bytes), at + 1
            else:
                high = at - 1
            at = high if at == 0 else (low + high + 1) // 2  # then all of them, then halves
        if found is not None:
            return found
    return None


def advice(fit: Fit | None) -> str:
    """What to change where a step does not fit, as half a sentence."""
    if fit is None:
        return "use an adapter, a smaller model, or train.weights=bf16"
    return f"use {fit.settings}"


def _parts(whole: int) -> list[int]:
    """The sizes of a micro-batch, smallest first, of which none has rows to spare: ceil(whole / n)
    for all n.
    """
    sizes, count = [whole], 1
    while sizes[-1] > 1:
        count = -(-whole // (sizes[-1] - 1))
        sizes.append(-(-whole // count))
    return sizes[::-1]
