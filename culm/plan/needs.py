"""What a run needs: FLOPs of a step, and memory by what it is for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from culm.batch import Batch
from culm.objective.objective import Objective
from culm.optim.groups import trainable
from culm.optim.optimizer import OptimizerConfig
from culm.parallel.axis import SimulatedAxis
from culm.plan.dry_run import (
    Columns,
    TensorMemory,
    activation_bytes,
    counting_matmuls,
    meta_batch,
    training_flops,
)
from culm.plan.layout import Held, Layout, Piped, bytes_of
from culm.plan.model import idle_parameters

TOKENS = 1 << 17  # of a dry run at most


@dataclass(frozen=True)
class Memory:
    """Bytes of the tensors of a process. activations: peak of forward and backward, or of the
    update if that is higher, without the rest.
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
    checkpoint_bytes: of one checkpoint. sent: bytes that a process sends in a step, by axis and
    kind of exchange.
    """

    parameters: int
    idle: int
    trained: int
    rows: int
    flops: float
    memory: Memory
    checkpoint_bytes: int
    sent: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """The shape of a step. context: tokens of a row. batch_size: rows of a step; at_once: of a
    micro-batch. sequences: in a row (2 for pairs). packed, columns: see `meta_batch`. layout: of
    the processes that share it; buffers, such as packed weights, are whole on each. in_backward:
    parameters are updated there, and one gradient is in memory at a time. measures_updates: whether
    the size of updates is compared with that of the weights.
    """

    context: int
    batch_size: int
    at_once: int
    sequences: int = 1
    packed: bool = True
    columns: Columns | None = None
    layout: Layout = Layout()  # noqa: RUF009 - frozen
    in_backward: bool = False
    measures_updates: bool = False

    @property
    def rows(self) -> int:
        """Of a micro-batch on a rank."""
        return min(self.at_once, -(-self.batch_size // self.layout.data))

    @property
    def micro_batches(self) -> int:
        """Of a step on a rank."""
        return -(-self.batch_size // (self.layout.data * self.rows))

    @property
    def tried(self) -> int:
        """Rows of a dry run."""
        return min(self.rows, max(2, TOKENS // (self.context * self.sequences)))

    def batch(self, rows: int) -> Batch:
        """This many rows on the meta device."""
        return meta_batch(
            rows * self.sequences, self.context, packed=self.packed, columns=self.columns
        )


class DryRuns:
    """Results of the dry runs of one objective, optimizer and layout, each done once: many
    micro-batches need the same ones.
    """

    def __init__(self) -> None:
        self._update: _Update | None = None
        self._activations: dict[tuple[int, bool], int] = {}

    def update(self, objective: Objective, optimizer: OptimizerConfig) -> _Update:
        """What an update of the weights takes."""
        if self._update is None:
            self._update = _update(objective, optimizer)
        return self._update

    def activations(self, objective: Objective, step: Step, accumulates: bool) -> int:
        """Bytes of a micro-batch. Those of more rows than a dry run has grow evenly with them."""
        tried, rows = step.tried, step.rows
        found = self._activations_of(objective, step, tried, accumulates)
        if rows == tried:
            return found
        fewer = self._activations_of(objective, step, tried // 2, accumulates)
        return found + (found - fewer) * (rows - tried) // (tried - tried // 2)

    def _activations_of(
        self, objective: Objective, step: Step, rows: int, accumulates: bool
    ) -> int:
        key = rows, accumulates
        if key not in self._activations:
            self._activations[key] = activation_bytes(objective, step.batch(rows), accumulates)
        return self._activations[key]


def needs_of(
    objective: Objective,
    optimizer: OptimizerConfig,
    step: Step,
    others: Sequence[nn.Module] = (),
    *,
    count_flops: bool = True,
    dry_runs: DryRuns | None = None,
) -> Needs:
    """What training the objective takes; it must be on the meta device.

    others: models that are only read. count_flops: in a second pass; without it FLOPs and what is
    sent have no meaning. dry_runs: those of earlier calls, for steps that differ in the micro-batch
    alone.
    """
    dry_runs = dry_runs or DryRuns()
    layout, learned = step.layout, [parameter for _, parameter in trainable(objective)]
    parameters, idle = (f(objective.model) for f in (_parameters, idle_parameters))
    trained, gradients = sum(p.numel() for p in learned), bytes_of(learned)
    update = dry_runs.update(objective, optimizer)
    # A copy in fp32 of one parameter after the other (`culm.train.update.UpdateRatio`).
    copied = max((4 * p.numel() for p in learned), default=0) if step.measures_updates else 0
    piped = layout.piped(objective)
    axes = layout.divide(objective)
    held = Held(objective, layout, axes, piped)
    # DDP and FSDP2 have places for gradients all the time; those of updates in the backward are
    # counted on their own.
    accumulates = step.micro_batches > 1 or layout.processes > 1 or step.in_backward
    activations = dry_runs.activations(objective, step, accumulates)
    if piped is not None:
        at_once = piped.at_once(step.micro_batches)
        activations = int(activations / layout.settings.pipeline * at_once)
    for axis in axes.values():
        axis.sent.clear()  # exchanges are counted in the pass of the FLOPs alone
    flops = training_flops(objective, step.batch(step.tried)) if count_flops else 0
    share = held.trained / max(gradients, 1)
    memory = Memory(
        weights=held.weights + held.gathered + bytes_of(objective.buffers())
        + sum(bytes_of((*m.parameters(), *m.buffers())) for m in others),
        gradients=max((p.nbytes for p in learned), default=0) if step.in_backward
        else held.trained + held.largest,
        optimizer=int(update.states * share),
        activations=max(activations, int((update.bytes + copied) * share)),
    )  # fmt: skip
    return Needs(
        parameters=parameters,
        idle=idle,
        trained=trained,
        rows=step.rows,
        flops=flops * step.batch_size / step.tried * layout.alike + update.flops,
        memory=memory,
        checkpoint_bytes=gradients + update.states,
        sent=_sent(step, axes, held, piped),
    )


def _sent(
    step: Step, axes: Mapping[str, SimulatedAxis], held: Held, piped: Piped | None
) -> dict[str, Counter[str]]:
    """Bytes of a step, from those of a dry run."""
    times = step.micro_batches * step.rows / step.tried
    sent = {name: _times(axis.sent, times) for name, axis in axes.items()}
    if piped is not None:  # each rank has its share of layers and of exchanges between their ranks
        stages, rows = step.layout.settings.pipeline, step.rows * step.sequences
        sent = {name: Counter({k: n // stages for k, n in s.items()}) for name, s in sent.items()}
        sent["pipeline"] = piped.sent(rows, step.context, step.micro_batches)
    ranks = axes["tensor"].size
    sent["tensor"]["all-reduce"] += 2 * held.added_up * (ranks - 1) // ranks
    return sent | {"data": held.sent(step.micro_batches)}


def _times(sent: Mapping[str, int], times: float) -> Counter[str]:
    return Counter({kind: int(bytes * times) for kind, bytes in sent.items()})


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class _Update(NamedTuple):
    """states: bytes of the optimizer's states. bytes, flops: of an update, without them."""

    states: int
    bytes: int
    flops: int


def _update(objective: nn.Module, settings: OptimizerConfig) -> _Update:
    optimizer = settings.build(objective)
    for _, parameter in trainable(objective):
        parameter.grad = torch.zeros_like(parameter)
    matmuls = counting_matmuls()
    with matmuls:
        optimizer.step()
    held = [value for state in optimizer.state.values() for value in state.values()]
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    with TensorMemory([*objective.parameters(), *gradients, *held]) as memory:
        optimizer.step()
    return _Update(bytes_of(held), memory.peak, matmuls.get_total_flops())
