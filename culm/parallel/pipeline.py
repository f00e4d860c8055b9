"""Pipeline parallelism: groups of layers on different ranks, through which micro-batches pass.

    rank 0    f0 f1 -- b0 f2 b1 f3 b2 -- b3        f: forward of a micro-batch
    rank 1    -- f0 b0 f1 b1 f2 b2 f3 b3 --        b: backward       (1F1B of 2 ranks)

The order is one of torch.distributed.pipelining. Each rank has all micro-batches of its rows, so
that only states travel, with the sum of the experts' auxiliary losses behind them. The last stage
calls the objective, whose models give it the states that arrived.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    PipelineScheduleSingle,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from culm.batch import Batch, Loss, Sums, Term
from culm.dtensor import local_shard
from culm.model.context import LOADS
from culm.model.mlp.moe import Router
from culm.parallel.check import check_micro_batches
from culm.parallel.mesh import Axes
from culm.parallel.pieces import Pieces
from culm.parallel.sequence import SequenceShards
from culm.parallel.settings import ParallelConfig, PipelineSchedule
from culm.parallel.stage import Pipelined, PipelineStep, Stage
from culm.parallel.states import States

ONE_STAGE: dict[PipelineSchedule, type[PipelineScheduleSingle]] = {
    "1f1b": Schedule1F1B,
    "gpipe": ScheduleGPipe,
}
SEVERAL: dict[PipelineSchedule, type[PipelineScheduleMulti]] = {
    "interleaved": ScheduleInterleaved1F1B,
    "zero_bubble": ScheduleZBVZeroBubble,
}
Named = dict[str, tuple[float, str, float]]  # total, count that divides it, weight


class Pipeline:
    """An objective whose models lie on the ranks of a pipeline.

    It is made of the whole objective; `drop` leaves this rank its part, after other axes have
    divided the layers. own: what the objective has besides models, which every rank keeps.
    """

    def __init__(
        self, objective: nn.Module, axes: Axes, shards: SequenceShards, settings: ParallelConfig
    ) -> None:
        self.axis, self.settings = axes.pipeline, settings
        pipelined = cast(Pipelined, objective)
        models = pipelined.models().values()
        self.states = [States(m, Pieces(m, self.axis, settings), shards) for m in models]
        for state in self.states:
            state.model.whole = state.whole  # other axes put theirs around it
        inside = {p for state in self.states for p in state.model.parameters()}
        self.own = [p for p in objective.parameters() if p not in inside and p.requires_grad]
        numbers = [self._routers(stage) for stage in range(settings.stages)]
        self.stages = [
            Stage(pipelined, self.states, number, numbers[number], any(numbers))
            for number in range(settings.stages)
            if settings.rank_of_stage(number) == self.axis.rank
        ]
        self._schedule: tuple[tuple[int, ...], Any] = (), None

    def drop(self) -> None:
        """Leave this rank its part of the models."""
        for state in self.states:
            state.install()
            state.pieces.drop()
        for stage in self.stages:
            stage.collect()

    def counts_here(self, parameter: nn.Parameter) -> bool:
        """Whether the norm of all gradients takes a parameter from this rank, not from another."""
        if self.settings.rank_of_stage(0) == self.axis.rank:
            return True
        again = [*self.own, *(state.pieces.twice for state in self.states)]
        return not any(parameter is one for one in again)

    def gradients(
        self, batches: Sequence[Batch], counts: Mapping[str, float], scale: float
    ) -> Sums:
        """Leave the gradients of a step in the parameters of this rank; gives the sums of its data
        rank, the same on all ranks of the pipeline.

        Raises:
            SettingError: the schedule cannot take this many micro-batches.
        """
        check_micro_batches(self.settings, len(batches))
        device = self.states[0].model.device
        left = {stage.number: set(range(len(batches))) for stage in self.stages}
        placed = [batch.to(device) for batch in batches]
        step = PipelineStep(placed, counts, scale, Sums(), left, torch.initial_seed())
        for stage in self.stages:
            stage.step = step
            stage.synchronise(False)
        numbers = torch.arange(len(batches))
        self._schedule_of(step).step(number=numbers, target=numbers, return_outputs=False)
        self._exchange()
        return self._gathered(step.sums)

    def _routers(self, stage: int) -> list[int]:
        """Of all layers of experts that learn, those that a stage computes, in its order."""
        found, place = list[int](), 0
        for state in self.states:
            for name, module in state.model.named_modules() if state.learns else ():
                if isinstance(module, Router):
                    root, number, *_ = name.split(".")
                    pieces = state.pieces  # multi-token prediction belongs to the last stage
                    at = pieces.stage_of(int(number)) if root == "blocks" else -1
                    found += [place] if at % len(pieces.stages) == stage else []
                    place += 1
        return found

    def _schedule_of(self, step: PipelineStep) -> Any:
        """For as many micro-batches, of as many rows and tokens as the largest one."""
        size = (len(step.batches), *step.largest)
        if size != self._schedule[0]:
            self._schedule = size, self._made(*size)
        return self._schedule[1]

    def _made(self, micro_batches: int, rows: int, tokens: int) -> Any:
        stages = []
        for stage in self.stages:
            before, after = stage.examples(rows, tokens)
            stages.append(PipelineStage(
                stage, stage.number, self.settings.stages, stage.device,
                input_args=before, output_args=after, group=self.axis.mesh.get_group(),
            ))  # fmt: skip
        name = self.settings.pipeline_schedule
        given: dict[str, Any] = {"loss_fn": lambda loss, target: loss, "scale_grads": False}
        if name in ONE_STAGE:
            return ONE_STAGE[name](stages[0], micro_batches, **given)
        return SEVERAL[name](list(stages), micro_batches, **given)

    def _exchange(self) -> None:
        """Add up the gradients of what several ranks have."""
        ends = [self.settings.rank_of_stage(n) for n in (0, self.settings.stages - 1)]
        for state in self.states:
            embedding = state.pieces.twice
            if embedding is not None and embedding.requires_grad:
                grad = _grad(embedding)
                grad.add_(self.axis.swap(grad, sum(ends) - self.axis.rank))
        for parameter in self.own:
            grad = _grad(parameter)
            grad.copy_(self.axis.all_reduce(grad))

    def _gathered(self, own: Sums) -> Sums:
        """The sums of the last stage, with what the routers of all stages did."""
        totals = own.totals()
        kinds: list[Named] = [
            {name: (totals[name], term.per, term.weight) for name, term in found.items()}
            for found in (own.terms, own.metrics)
        ]
        statistics = {name: value.tolist() for name, value in own.statistics.items()}
        found = self.axis.gather_objects((kinds, statistics))
        (terms, metrics), _ = found[self.settings.rank_of_stage(self.settings.stages - 1)]
        every = {name: value for _, one in found for name, value in one.items()}
        ordered = {name: torch.tensor(every[name]) for name in sorted(every, key=_place)}
        sums = Sums()
        sums.add(Loss(_terms(terms), _terms(metrics), ordered))
        return sums


def _terms(named: Named) -> dict[str, Term]:
    return {
        name: Term(torch.tensor(total, dtype=torch.float64), per, weight)
        for name, (total, per, weight) in named.items()
    }


def _grad(parameter: nn.Parameter) -> Tensor:
    """This rank's part of a gradient; zeros if this rank found none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return local_shard(parameter.grad)


def _place(name: str) -> int:
    """Layers of experts in their order, behind all others."""
    return int(name.removeprefix(LOADS)) if name.startswith(LOADS) else -1
