"""What a run needs: FLOPs of a step, and memory by what it is for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from culm.optim import AdamW
from culm.optim.groups import trainable
from culm.parallel.parallelize import ParallelConfig
from culm.plan.dry_run import counting_products, dry_run, meta_batch
from culm.plan.model import idle_parameters
from culm.train.settings import TrainConfig

ROWS = 64  # of a dry run at most; more take in proportion


@dataclass(frozen=True)
class Memory:
    """Bytes of a process. activations: the most that forward and backward hold beside the rest."""

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
    that learn. flops: of a step, over all processes. checkpoint_bytes: of one checkpoint.
    """

    parameters: int
    idle: int
    trained: int
    flops: float
    memory: Memory
    checkpoint_bytes: int


def needs_of(
    objective: nn.Module,
    train: TrainConfig,
    context: int,
    *,
    sequences: int = 1,
    packed: bool = True,
    parallel: ParallelConfig = ParallelConfig(),
    ranks: int = 1,
) -> Needs:
    """What training the objective takes; it must be on the meta device.

    sequences: in a row (2 for pairs). packed: rows hold several documents. ranks: processes that
    share the rows, and with `fsdp` the weights, gradients and optimizer state.
    """
    rows = min(train.micro_batch_size or train.batch_size, -(-train.batch_size // ranks))
    tried = min(rows, ROWS)
    cost = dry_run(objective, meta_batch(tried * sequences, context, packed=packed))
    state, update = _update(objective, train)
    share = ranks if parallel.replicas == "fsdp" else 1
    learned = [parameter for _, parameter in trainable(objective)]
    gradients = sum(parameter.nbytes for parameter in learned)
    tensors = {id(t): t for t in (*objective.parameters(), *objective.buffers())}
    memory = Memory(
        weights=sum(t.nbytes for t in tensors.values()) // share,
        gradients=gradients // share,
        optimizer=state // share,
        activations=cost.bytes * rows // tried,
    )
    model: nn.Module = objective.model  # type: ignore[assignment]
    return Needs(
        parameters=sum(p.numel() for p in model.parameters()),
        idle=idle_parameters(model),
        trained=sum(parameter.numel() for parameter in learned),
        flops=cost.flops * train.batch_size / tried + update,
        memory=memory,
        checkpoint_bytes=gradients + state,
    )


def _update(objective: nn.Module, train: TrainConfig) -> tuple[int, int]:
    """Bytes of the optimizer's state, and FLOPs of one update."""
    if isinstance(train.optimizer, AdamW):  # its fused kernel knows no meta device
        return sum(2 * parameter.nbytes for _, parameter in trainable(objective)), 0
    optimizer = train.optimizer.build(objective)
    for _, parameter in trainable(objective):
        parameter.grad = torch.zeros_like(parameter)
    products = counting_products()
    with products:
        optimizer.step()
    held = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in held), products.get_total_flops()
