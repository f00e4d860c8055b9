"""One stage of a pipeline: some layers of every model of an objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from culm.batch import Batch, Loss, Sums, Term
from culm.model.context import LOADS, Context, Routing
from culm.model.transformer import Transformer
from culm.parallel.states import States, Streams, arrived, padded
from culm.seed import keyed_integer


class Pipelined(Protocol):
    """What a pipeline asks of an objective (`culm.objective.objective`)."""

    def models(self) -> dict[str, Transformer]: ...

    def routed(self, routings: Sequence[Routing]) -> Loss: ...

    def children(self) -> Sequence[nn.Module]: ...

    def __call__(self, batch: Batch) -> Loss: ...


class PipelineStep(NamedTuple):
    """A step at work. scale: of the loss, for the gradients. sums: of this rank. left: what each
    stage has not gone back through yet, by numbers of micro-batches. seed: of noise.
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


class Stage(nn.Module):
    """Called with what arrived and the number of a micro-batch, it gives what the next stage reads;
    the last one calls the objective and gives the loss.

    routers: numbers of its layers of experts among those of all stages. routes: whether any stage
    has some.
    """

    def __init__(
        self,
        objective: Pipelined,
        states: Sequence[States],
        number: int,
        routers: Sequence[int],
        routes: bool,
    ) -> None:
        super().__init__()
        self._objective = (objective,)  # no module of this one
        self.states, self.number, self.routers, self.routes = states, number, routers, routes
        self.is_last = number == len(states[0].pieces.stages) - 1
        self.step: PipelineStep | None = None

    @property
    def device(self) -> torch.device:
        return self.states[0].model.device

    @property
    def at_work(self) -> PipelineStep:
        assert self.step is not None
        return self.step

    def collect(self) -> None:
        """Know the modules that it computes, whose gradients a schedule may ask for separately."""
        ends = ["embed", "positions"] if self.number == 0 else []
        ends += ["embed", "norm", "mtp", "head"] if self.is_last else []
        found: list[nn.Module] = []
        for state in self.states:
            layers = state.pieces.stages[self.number]
            found += [state.model.get_submodule(f"blocks.{layer}") for layer in layers]
            parts = dict(state.model.named_children())
            found += [parts[name] for name in ends if name in parts]
        models = [state.model for state in self.states]
        if self.is_last:
            (objective,) = self._objective
            found += [part for part in objective.children() if part not in models]
        self.parts = nn.ModuleList(found)

    def examples(self, rows: int, tokens: int) -> tuple[Streams, Streams]:
        """Tensors like those that it gets and gives, for micro-batches of this size."""
        loss = torch.empty((), device="meta", requires_grad=True)
        before = self._examples(self.number - 1, rows, tokens) if self.number else ()
        return before, (loss,) if self.is_last else self._examples(self.number, rows, tokens)

    def _examples(self, stage: int, rows: int, tokens: int) -> Streams:
        found = [
            torch.empty(shape, dtype=state.model.dtype, device="meta", requires_grad=state.learns)
            for state in self.states
            for shape in state.shapes(stage, rows, tokens)
        ]
        if self.routes:
            found.append(torch.empty((), device="meta", requires_grad=True))
        return tuple(found)

    def forward(self, *given: Tensor, number: Tensor) -> Tensor | Streams:
        step, index = self.at_work, int(number)
        batch = step.batches[index]
        # Noise does not depend on the schedule.
        torch.manual_seed(keyed_integer(step.seed, "stage", self.number, index))
        taken, auxiliary = self._taken(given, batch)
        compute = self._last if self.is_last else self._inner
        found = compute(batch, taken, auxiliary)
        for one in found:
            if one.requires_grad:
                one.register_hook(lambda grad: self._going_back(index))
        return found[0] if self.is_last else found

    def synchronise(self, on: bool) -> None:
        """Whether FSDP2 exchanges the gradients of a backward."""
        roots = [state.model for state in self.states]
        for module in (*self.parts.modules(), *roots):
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(on, recurse=False)

    def _going_back(self, index: int) -> None:
        """Called at the start of the backward of a micro-batch."""
        left = self.at_work.left[self.number]
        left.discard(index)
        if not left:
            self.synchronise(True)

    def _taken(self, given: Streams, batch: Batch) -> tuple[list[Streams], Tensor | None]:
        """What arrived of each model, and the auxiliary losses before this stage."""
        if self.number == 0:
            zero = torch.zeros((), device=self.device) if self.routes else None
            return [() for _ in self.states], zero
        streams, size = iter(given), batch.tokens.shape
        taken = [
            tuple(arrived(next(streams), s) for s in state.shapes(self.number - 1, *size))
            for state in self.states
        ]
        return taken, next(streams, None)

    def _inner(self, batch: Batch, taken: list[Streams], auxiliary: Tensor | None) -> Streams:
        routings = list[Routing]()
        context = Context(batch.positions, batch.documents, padding=batch.padding)
        found: list[Tensor] = []
        for state, streams in zip(self.states, taken, strict=True):
            inside = replace(context, routings=routings) if state.learns else context
            with state.stage(self.number, streams), torch.set_grad_enabled(state.learns):
                found += [_sent(one, state.learns) for one in state.advance(batch, inside)]
        if auxiliary is not None:
            if routings:
                (objective,) = self._objective
                routed = objective.routed(routings)
                auxiliary = auxiliary + routed.terms["auxiliary"].total
                self._keep(routed.statistics)
            found.append(_sent(auxiliary, True))
        shapes = [one.shape for one in self._examples(self.number, *self.at_work.largest)]
        return tuple(padded(one, shape) for one, shape in zip(found, shapes, strict=True))

    def _last(self, batch: Batch, taken: list[Streams], auxiliary: Tensor | None) -> Streams:
        step, (objective,) = self.at_work, self._objective
        with ExitStack() as stack:
            for state, streams in zip(self.states, taken, strict=True):
                stack.enter_context(state.stage(self.number, streams))
            loss = objective(batch)
        if auxiliary is not None:
            own = loss.terms.get("auxiliary", Term(torch.zeros_like(auxiliary), "tokens"))
            term = own._replace(total=own.total + auxiliary)
            loads = {n: v for n, v in loss.statistics.items() if n.startswith(LOADS)}
            rest = {n: v for n, v in loss.statistics.items() if n not in loads}
            loss = replace(loss, terms={**loss.terms, "auxiliary": term}, statistics=rest)
            self._keep(loads)
        step.sums.add(loss)
        return (loss.mean(step.counts) * step.scale,)

    def _keep(self, loads: Mapping[str, Tensor]) -> None:
        """Add the loads of this stage's layers of experts, by their numbers among all."""
        named = zip(self.routers, loads.values(), strict=True)
        numbered = {f"{LOADS}{number}": value for number, value in named}
        self.at_work.sums.add(Loss({}, statistics=numbered))


def _sent(x: Tensor, learns: bool) -> Tensor:
    """A contiguous tensor of its own, which takes a gradient where the next stage gives one."""
    if not learns:
        return x.detach().contiguous()
    if not x.requires_grad:
        return x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    own = not x.is_leaf and not x._is_view() and x.is_contiguous()
    return x if own else x.clone(memory_format=torch.contiguous_format)
