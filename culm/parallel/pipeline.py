"""Pipeline parallelism: groups of layers on different ranks, through which micro-batches pass.

    rank 0    f0 f1 -- b0 f2 b1 f3 b2 -- b3        f: forward of a micro-batch
    rank 1    -- f0 b0 f1 b1 f2 b2 f3 b3 --        b: backward       (1F1B of 2 ranks)

The order is one of torch.distributed.pipelining. Each rank has all micro-batches of its rows, so
that only states travel, with the sum of the experts' auxiliary losses behind them. The last stage
calls the objective, whose models give the states that arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
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
from culm.model.context import LOADS, Context, Routing
from culm.model.mlp.moe import Router
from culm.model.transformer import Transformer
from culm.parallel.axis import Axis
from culm.parallel.mesh import Axes
from culm.parallel.pieces import Pieces
from culm.parallel.sequence import SequenceShards
from culm.parallel.settings import ParallelConfig, PipelineSchedule
from culm.parallel.states import States, Streams, cut, padded
from culm.seed import keyed_integer

SINGLE: dict[PipelineSchedule, type[PipelineScheduleSingle]] = {
    "1f1b": Schedule1F1B,
    "gpipe": ScheduleGPipe,
}
MULTIPLE: dict[PipelineSchedule, type[PipelineScheduleMulti]] = {
    "interleaved": ScheduleInterleaved1F1B,
    "zero_bubble": ScheduleZBVZeroBubble,
}


class Objective(Protocol):
    """What a pipeline asks of an objective (`culm.objective.objective`)."""

    @property
    def calls_twice(self) -> bool: ...

    def models(self) -> dict[str, Transformer]: ...

    def routed(self, routings: Sequence[Routing]) -> Loss: ...

    def __call__(self, batch: Batch) -> Loss: ...


class Step(NamedTuple):
    """A step at work. scale: of the loss, for the gradients. left: micro-batches that each stage
    has not gone back through yet.
    """

    batches: Sequence[Batch]
    counts: Mapping[str, float]
    scale: float
    sums: Sums
    left: dict[int, set[int]]
    seed: int

    @property
    def largest(self) -> tuple[int, int]:
        """Rows and tokens that a micro-batch has at most; all are sent in this size."""
        rows, tokens = zip(*(batch.tokens.shape for batch in self.batches), strict=True)
        return max(rows), max(tokens)


class Pipeline:
    """An objective whose models lie on the ranks of a pipeline.

    It is made of the whole objective; `drop` leaves this rank its part, after other axes have
    divided the layers.
    """

    def __init__(
        self,
        objective: nn.Module,
        axes: Axes,
        shards: SequenceShards,
        settings: ParallelConfig,
    ) -> None:
        self.objective: Any = objective
        self.axis, self.settings = axes.pipeline, settings
        models = objective.models()  # type: ignore[operator]
        self.states = [States(m, Pieces(m, self.axis, settings), shards) for m in models.values()]
        for state in self.states:
            state.model.whole = state.whole  # other axes put theirs around it
        self.numbers = [self._numbers(stage) for stage in range(settings.stages)]
        self.routes = any(self.numbers)
        outside = {p for state in self.states for p in state.model.parameters()}
        self.own = [p for p in objective.parameters() if p not in outside and p.requires_grad]
        self.stages = {
            number: Stage(self, number)
            for number in range(settings.stages)
            if settings.rank_of_stage(number) == self.axis.rank
        }
        self.step: Step | None = None
        self._schedules: dict[tuple[int, ...], Any] = {}

    def drop(self) -> None:
        """Leave this rank its part of the models."""
        for state in self.states:
            state.install()
            state.pieces.drop()
        for stage in self.stages.values():
            stage.collect()

    def counts_once(self, parameter: nn.Parameter) -> bool:
        """Whether it counts here in the norm of all gradients, and not on another rank."""
        first = self.settings.rank_of_stage(0) == self.axis.rank
        again = {state.pieces.twice for state in self.states} | set(self.own)
        return first or not any(parameter is one for one in again)

    def gradients(
        self, batches: Sequence[Batch], counts: Mapping[str, float], scale: float
    ) -> Sums:
        """Leave the gradients of a step in the parameters of this rank; gives the sums of its data
        rank, on all ranks of the pipeline.
        """
        device, number = self.states[0].model.device, range(len(batches))
        self.step = Step(
            [batch.to(device) for batch in batches], counts, scale, Sums(),
            {stage: set(number) for stage in self.stages}, torch.initial_seed(),
        )  # fmt: skip
        for stage in self.stages.values():
            stage.synchronise(False)
        numbers = torch.tensor(list(number))
        self._schedule().step(number=numbers, target=numbers, return_outputs=False)
        self._exchange()
        sums, self.step = self._gathered(self.step.sums), None
        return sums

    def _numbers(self, stage: int) -> list[int]:
        """Of all layers of experts that learn, those that a stage computes, in its order."""
        found, place = [], 0
        for state in self.states:
            for name, module in state.model.named_modules() if state.learns else ():
                if isinstance(module, Router):
                    root, layer, *_ = name.split(".")
                    at = len(self.states[0].pieces.stages) - 1  # of multi-token prediction
                    if root == "blocks":
                        at = state.pieces.stage_of(int(layer))
                    found += [place] if at == stage else []
                    place += 1
        return found

    def _schedule(self) -> Any:
        """For as many micro-batches, of rows as many and as long, as there are at most."""
        assert self.step is not None
        size = len(self.step.batches), *self.step.largest
        if size not in self._schedules:
            self._schedules.clear()  # its buffers with it
            stages = [self._torch_stage(stage, *self.step.largest) for stage in self.stages.values()]
            given = {"loss_fn": lambda loss, target: loss, "scale_grads": False}
            name = self.settings.pipeline_schedule
            if name in SINGLE:
                self._schedules[size] = SINGLE[name](stages[0], size[0], **given)  # type: ignore[arg-type]
            else:
                self._schedules[size] = MULTIPLE[name](stages, size[0], **given)  # type: ignore[arg-type]
        return self._schedules[size]

    def _torch_stage(self, stage: Stage, rows: int, tokens: int) -> PipelineStage:
        number, loss = stage.number, torch.empty((), device="meta", requires_grad=True)
        return PipelineStage(
            stage, number, self.settings.stages, stage.device,
            input_args=() if number == 0 else self.examples(number - 1, rows, tokens),
            output_args=(loss,) if stage.is_last else self.examples(number, rows, tokens),
            group=self.axis.mesh.get_group(),
        )  # fmt: skip

    def examples(self, stage: int, rows: int, tokens: int) -> Streams:
        """Tensors like those that a stage gives to the next one."""
        found = [
            torch.empty(shape, dtype=state.model.dtype, device="meta", requires_grad=state.learns)
            for state in self.states
            for shape in state.shapes(stage, rows, tokens)
        ]
        if self.routes:
            found.append(torch.empty((), device="meta", requires_grad=True))
        return tuple(found)

    def _exchange(self) -> None:
        """Add up the gradients of what several ranks have."""
        ends = [self.settings.rank_of_stage(n) for n in (0, self.settings.stages - 1)]
        for state in self.states:
            embedding = state.pieces.twice
            if embedding is not None and embedding.requires_grad:
                grad = _grad(embedding)
                other = ends[0] if self.axis.rank == ends[1] else ends[1]
                grad.add_(self.axis.swap(grad, other))
        for parameter in self.own:
            grad = _grad(parameter)
            grad.copy_(self.axis.all_reduce(grad))

    def _gathered(self, own: Sums) -> Sums:
        """The sums of the last stage, with what the routers of all stages did."""
        terms = {
            kind: {name: (totals[name], term.per, term.weight) for name, term in found.items()}
            for totals in [own.totals()]
            for kind, found in (("terms", own.terms), ("metrics", own.metrics))
        }
        statistics = {name: value.tolist() for name, value in own.statistics.items()}
        found = self.axis.gather_objects((terms, statistics))
        end, _ = found[self.settings.rank_of_stage(self.settings.stages - 1)]
        kept = {
            kind: {
                name: Term(torch.tensor(total, dtype=torch.float64), per, weight)
                for name, (total, per, weight) in one.items()
            }
            for kind, one in end.items()
        }
        every = dict(chain.from_iterable(one.items() for _, one in found))
        order = sorted(every, key=_place)
        sums = Sums()
        sums.add(Loss(**kept, statistics={name: torch.tensor(every[name]) for name in order}))
        return sums


class Stage(nn.Module):
    """The layers of one stage; called with what arrived, and the number of the micro-batch."""

    def __init__(self, pipeline: Pipeline, number: int) -> None:
        super().__init__()
        self._pipeline = [pipeline]  # not a module of this one
        self.number, self.is_last = number, number == pipeline.settings.stages - 1

    def collect(self) -> None:
        """Know the modules that it computes, whose gradients a schedule may ask for separately."""
        states = self.pipeline.states
        ends = ["embed", "positions"] if self.number == 0 else []
        ends += ["embed", "norm", "mtp", "head"] if self.is_last else []
        found = [
            state.model.get_submodule(f"blocks.{layer}")
            for state in states
            for layer in state.pieces.stages[self.number]
        ]
        for state in states:
            parts = dict(state.model.named_children())
            found += [parts[name] for name in ends if name in parts]
        if self.is_last:
            others = [state.model for state in states]
            found += [m for m in self.pipeline.objective.children() if m not in others]
        self.parts = nn.ModuleList(found)

    @property
    def pipeline(self) -> Pipeline:
        return self._pipeline[0]

    @property
    def device(self) -> torch.device:
        return self.pipeline.states[0].model.device

    def forward(self, *arrived: Tensor, number: Tensor) -> Tensor | Streams:
        """What the next stage reads; the last one gives the loss."""
        pipeline, index = self.pipeline, int(number)
        step = pipeline.step
        assert step is not None
        batch = step.batches[index]
        # Noise does not depend on the schedule.
        torch.manual_seed(keyed_integer(step.seed, "stage", self.number, index))
        given, auxiliary = self._taken(arrived, batch)
        found = self._last(batch, given, auxiliary) if self.is_last else self._inner(
            batch, given, auxiliary
        )
        for one in found:
            if one.requires_grad:
                one.register_hook(lambda grad: self._going_back(index))
        return found[0] if self.is_last else found

    def synchronise(self, on: bool) -> None:
        """Whether FSDP2 exchanges the gradients of a backward."""
        roots = [state.model for state in self.pipeline.states]
        for module in (*self.parts.modules(), *roots):
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(on, recurse=False)

    def _going_back(self, index: int) -> None:
        """Called at the start of the backward of a micro-batch."""
        step = self.pipeline.step
        assert step is not None
        left = step.left[self.number]
        left.discard(index)
        if not left:
            self.synchronise(True)

    def _taken(self, arrived: Streams, batch: Batch) -> tuple[list[Streams], Tensor | None]:
        """What arrived of each model, and the auxiliary losses before this stage."""
        states, streams = self.pipeline.states, iter(arrived)
        if self.number == 0:
            zero = torch.zeros((), device=self.device) if self.pipeline.routes else None
            return [() for _ in states], zero
        before, size = self.number - 1, batch.tokens.shape
        given = [
            tuple(cut(next(streams), shape) for shape in state.shapes(before, *size))
            for state in states
        ]
        return given, next(streams, None)

    def _inner(self, batch: Batch, given: list[Streams], auxiliary: Tensor | None) -> Streams:
        pipeline, routings = self.pipeline, list[Routing]()
        context = Context(batch.positions, batch.documents, padding=batch.padding)
        found: list[Tensor] = []
        for state, arrived in zip(pipeline.states, given, strict=True):
            inside = replace(context, routings=routings) if state.learns else context
            with state.stage(self.number, arrived), torch.set_grad_enabled(state.learns):
                streams = state.advance(batch, inside)
            found += [_sent(one, state.learns) for one in streams]
        if auxiliary is not None:
            if routings:
                routed = pipeline.objective.routed(routings)
                auxiliary = auxiliary + routed.terms["auxiliary"].total
                self._keep(routed.statistics)
            found.append(_sent(auxiliary, True))
        assert pipeline.step is not None
        shapes = [one.shape for one in pipeline.examples(self.number, *pipeline.step.largest)]
        return tuple(padded(one, shape) for one, shape in zip(found, shapes, strict=True))

    def _last(self, batch: Batch, given: list[Streams], auxiliary: Tensor | None) -> Streams:
        step = self.pipeline.step
        assert step is not None
        loss = self._loss(batch, given)
        if auxiliary is not None:
            own = loss.terms.get("auxiliary", Term(auxiliary.new_zeros(()), "tokens"))
            term = own._replace(total=own.total + auxiliary)
            loss = replace(loss, terms={**loss.terms, "auxiliary": term})
            self._keep({n: v for n, v in loss.statistics.items() if n.startswith(LOADS)})
            rest = {n: v for n, v in loss.statistics.items() if not n.startswith(LOADS)}
            loss = replace(loss, statistics=rest)
        step.sums.add(loss)
        return (loss.mean(step.counts) * step.scale,)

    def _loss(self, batch: Batch, given: list[Streams]) -> Loss:
        with ExitStack() as stack:
            for state, arrived in zip(self.pipeline.states, given, strict=True):
                stack.enter_context(state.stage(self.number, arrived))
            return self.pipeline.objective(batch)

    def _keep(self, loads: Mapping[str, Tensor]) -> None:
        """Loads of the own layers of experts, by their number among all."""
        step, numbers = self.pipeline.step, self.pipeline.numbers[self.number]
        assert step is not None
        named = zip(numbers, loads.values(), strict=True)
        step.sums.add(Loss({}, statistics={f"{LOADS}{n}": value for n, value in named}))


def _sent(x: Tensor, learns: bool) -> Tensor:
    """A tensor of its own, with a gradient where the next stage gives one."""
    if not learns:
        return x.detach().clone() if x._is_view() else x.detach()
    if not x.requires_grad:
        return x.detach().clone().requires_grad_()
    return x.clone() if x.is_leaf or x._is_view() else x


def _grad(parameter: nn.Parameter) -> Tensor:
    """The own part of a gradient; zeros if this rank found none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return local_shard(parameter.grad)


def _place(name: str) -> tuple[int, str]:
    number = name.removeprefix(LOADS)
    return (int(number) if number.isdecimal() else -1, name)
