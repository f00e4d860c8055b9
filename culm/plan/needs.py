"""What a run needs: FLOPs of a step, and memory by what it is for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from culm.objective.objective import Objective
from culm.optim.groups import trainable
from culm.optim.rule import OptimizerConfig
from culm.plan.dry_run import Columns, counting_matmuls, dry_run, meta_batch
from culm.plan.model import idle_parameters

ROWS = 64  # of a dry run at most; more take in proportion


@dataclass(frozen=True)
class Memory:
    """Bytes of a process. activations: peak of forward and backward, without the rest."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Needs:
    """parameters: of the model. idle: those of experts that a token is not sent to. trained: those
    that learn. rows: that a process computes at once. flops: of a step, over all processes.
    checkpoint_bytes: of one checkpoint.
    """

    parameters: int
    idle: int
    trained: int
    rows: int
    flops: float
    memory: Memory
    checkpoint_bytes: int


def needs_of(
    objective: Objective,
    optimizer: OptimizerConfig,
    context: int,
    *,
    batch_size: int,
    at_once: int,
    sequences: int = 1,
    packed: bool = True,
    columns: Columns | None = None,
    replicas: str = "ddp",
    ranks: int = 1,
    others: Sequence[nn.Module] = (),
) -> Needs:
    """What training the objective takes; it must be on the meta device.

    batch_size: rows of a step; at_once: of a micro-batch. sequences: in a row (2 for pairs).
    packed, columns: see `meta_batch`. ranks: processes that share a step, and with
    `replicas="fsdp"` the parameters, gradients and optimizer states; buffers, such as packed
    weights, are whole on each. others: models that are only read.
    """
    rows = min(at_once, -(-batch_size // ranks))
    tried = min(rows, ROWS)
    batch = meta_batch(tried * sequences, context, packed=packed, columns=columns)
    cost = dry_run(objective, batch)
    state, update = _update(objective, optimizer)
    share = ranks if replicas == "fsdp" else 1
    learned = [parameter for _, parameter in trainable(objective)]
    gradients = sum(parameter.nbytes for parameter in learned)
    memory = Memory(
        weights=_bytes(objective.parameters()) // share
        + _bytes(objective.buffers())
        + sum(_bytes((*one.parameters(), *one.buffers())) for one in others),
        gradients=gradients // share,
        optimizer=state // share,
        activations=cost.bytes * rows // tried,
    )
    return Needs(
        parameters=sum(p.numel() for p in objective.model.parameters()),
        idle=idle_parameters(objective.model),
        trained=sum(parameter.numel() for parameter in learned),
        rows=rows,
        flops=cost.flops * batch_size / tried + update,
        memory=memory,
        checkpoint_bytes=gradients + state,
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of all tensors, shared ones once."""
    return sum(tensor.nbytes for tensor in {id(t): t for t in tensors}.values())


def _update(objective: nn.Module, settings: OptimizerConfig) -> tuple[int, int]:
    """Bytes of the optimizer's states, and FLOPs of one update."""
    optimizer = settings.build(objective)
    for _, parameter in trainable(objective):
        parameter.grad = torch.zeros_like(parameter)
    matmuls = counting_matmuls()
    with matmuls:
        optimizer.step()
    held = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in held), matmuls.get_total_flops()
