"""What a run needs: FLOPs of a step, and memory by what it is for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from culm.batch import Batch
from culm.objective.objective import Objective
from culm.optim.groups import trainable
from culm.optim.optimizer import OptimizerConfig
from culm.plan.dry_run import Columns, counting_matmuls, dry_run, meta_batch
from culm.plan.model import idle_parameters

ROWS = 64  # of a dry run at most; more take in proportion


@dataclass(frozen=True)
class Memory:
    """Bytes of the tensors of a process. activations: peak of forward and backward, without the
    rest.
    """

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


@dataclass(frozen=True)
class Step:
    """The shape of a step. context: tokens of a row. batch_size: rows of a step; at_once: of a
    micro-batch. sequences: in a row (2 for pairs). packed, columns: see `meta_batch`. ranks:
    processes that share a step, and with `replicas="fsdp"` the parameters, gradients and optimizer
    states; buffers, such as packed weights, are whole on each.
    """

    context: int
    batch_size: int
    at_once: int
    sequences: int = 1
    packed: bool = True
    columns: Columns | None = None
    replicas: str = "ddp"
    ranks: int = 1

    @property
    def rows(self) -> int:
        """Of a micro-batch on a rank."""
        return min(self.at_once, -(-self.batch_size // self.ranks))

    @property
    def micro_batches(self) -> int:
        """Of a step on a rank."""
        return -(-self.batch_size // (self.ranks * self.rows))

    def batch(self, rows: int) -> Batch:
        """So many rows on the meta device."""
        return meta_batch(
            rows * self.sequences, self.context, packed=self.packed, columns=self.columns
        )


def needs_of(
    objective: Objective,
    optimizer: OptimizerConfig,
    step: Step,
    others: Sequence[nn.Module] = (),
) -> Needs:
    """What training the objective takes; it must be on the meta device.

    others: models that are only read.
    """
    rows, ranks = step.rows, step.ranks
    tried = min(rows, ROWS)
    batch = step.batch(tried)
    cost = dry_run(objective, batch)
    state, update = _update(objective, optimizer)
    share = ranks if step.replicas == "fsdp" else 1
    learned = [parameter for _, parameter in trainable(objective)]
    gradients = sum(parameter.nbytes for parameter in learned)
    memory = Memory(
        weights=_bytes(objective.parameters()) // share
        + _bytes(objective.buffers())
        + sum(map(bytes_of, others)),
        gradients=gradients // share,
        optimizer=state // share,
        activations=cost.bytes * rows // tried,
    )
    return Needs(
        parameters=sum(p.numel() for p in objective.model.parameters()),
        idle=idle_parameters(objective.model),
        trained=sum(parameter.numel() for parameter in learned),
        rows=rows,
        flops=cost.flops * step.batch_size / tried + update,
        memory=memory,
        checkpoint_bytes=gradients + state,
    )


def bytes_of(module: nn.Module) -> int:
    """Of its parameters and buffers."""
    return _bytes((*module.parameters(), *module.buffers()))


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
