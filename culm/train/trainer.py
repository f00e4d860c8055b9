"""The one training loop. It names no model and no loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from culm.batch import Batch, Sums, divisor
from culm.exits import RESUMES, OutOfMemory, is_out_of_memory
from culm.parallel.phases import phase
from culm.parallel.ranks import Ranks
from culm.seed import keyed_integer
from culm.train.events import Event, Stepped
from culm.train.judge import Finite, StepJudge, TrainingError
from culm.train.rates import RateSchedule
from culm.train.update import Update

SMALLER = (
    "use a smaller train.micro_batch_size, train.activation_checkpointing=full, an adapter, or a "
    "smaller model (`culm plan` shows what a run needs)"
)


class Batches(Protocol):
    """A file, a stream, or a model that writes its own data: the loop cannot tell."""

    @property
    def fingerprint(self) -> str:
        """Of everything that the order of the data depends on."""
        ...

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of step `number` (from 0), for this rank."""
        ...

    def state(self, steps: int) -> dict[str, Tensor]:
        """What a checkpoint after `steps` steps must hold to continue exactly; every rank calls it.

        Empty where `step` is a function of its number and the weights alone.
        """
        ...

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        """Continue after this many steps with what `state` gave."""
        ...


class Learner(Protocol):
    """What the loop asks of an objective, beyond the loss."""

    def prepare_step(self, batches: list[Batch], number: int, ranks: Ranks) -> list[Batch]:
        """The micro-batches of a step, completed before any of it is learned from."""
        ...

    def resets_optimizer(self) -> bool:
        """Whether the state of the optimizer is dropped before this step."""
        ...

    def before_update(self, statistics: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Called between the gradients and the update of a step; gives further metrics."""
        ...


@dataclass(frozen=True)
class Timing:
    """How long a step took. step: its number (from 1). tokens: that it read, padding excluded.
    fetched: seconds until its data were there. seconds: of all of it.
    """

    step: int
    tokens: int
    fetched: float
    seconds: float


Observer = Callable[[Timing], Mapping[str, float]]


class Trainer:
    """Turns batches into steps.

    Per step: forward and backward of every micro-batch, in which each sum is divided once by its
    count of the whole step (over micro-batches and ranks), and one update. Random numbers of a
    forward (dropout) are keyed by seed, step and rank, so a resumed run gets the same ones.

    update: of an objective on its ranks. judge: of the loss and gradient norm of each step, before
    its update. observers: further metrics of each step; every rank calls them. listener: gets the
    facts of each step. stop: whether the run was asked to stop.
    """

    def __init__(
        self,
        update: Update,
        schedule: RateSchedule,
        *,
        judge: StepJudge = Finite(),
        observers: Sequence[Observer] = (),
        listener: Callable[[Event], None] = lambda event: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.update, self.parallel, self.schedule = update, update.parallel, schedule
        self.objective = cast(Learner, self.parallel.objective)
        self.ranks, self.judge, self.observers = self.parallel.ranks, judge, observers
        self.listener, self.stop = listener, stop

    def fit(self, batches: Batches, steps: int, start: int = 0, tokens: int = 0) -> int:
        """Steps start .. steps - 1; gives how many are finished. tokens: read before `start`."""
        self.update.clear()  # of a step that was given up
        for number in range(start, steps):
            began = time.perf_counter()
            with self.ranks.pulse.step():
                with phase("data", self.ranks.pulse):
                    given = self._given(batches, number)
                event = self._step(given, number, steps, tokens, began)
            tokens = event.tokens
            self.listener(event)
            if event.stopped:
                return event.step
        return max(start, steps)

    def _given(self, batches: Batches, number: int) -> list[Batch]:
        """The micro-batches of a step for this rank, as the objective completes them."""
        return self.objective.prepare_step(batches.step(number), number, self.ranks)

    def _step(
        self, batches: list[Batch], number: int, steps: int, tokens: int, began: float
    ) -> Stepped:
        fetched, finished = time.perf_counter() - began, number + 1
        counts = self._counts(batches)
        if not counts["targets"]:
            raise TrainingError(f"step {finished}: nothing in its batch is learned")
        if self.objective.resets_optimizer():
            self.update.reset()
        rates = self.update.set_rates(self.schedule.factor(number, steps))
        self._seed(number)
        with self.update.during_backward(number):
            sums = self._gradients(batches, counts, finished)
        loss, norm, metrics = self._reduce(sums, self.update.norm(), batches, counts)
        stopped = self.ranks.any(self.stop(), self.parallel.device)
        skipped = self.update.overflow(finished, loss, norm) or self.judge.judge(
            finished, loss, norm
        )
        metrics |= self.update.facts
        if skipped is None:
            metrics |= self.objective.before_update(self._total(sums.statistics))
            metrics |= self.update.apply(number)
        self.update.clear()
        read, seconds = int(counts["tokens"]), time.perf_counter() - began
        for observe in self.observers:
            metrics |= observe(Timing(finished, read, fetched, seconds))
        return Stepped(
            finished, steps, loss, norm, rates, tokens + read, seconds, metrics,
            last=finished == steps, stopped=stopped, skipped=skipped,
        )  # fmt: skip

    def _seed(self, number: int) -> None:
        """Of random numbers in the forwards of a step."""
        torch.manual_seed(keyed_integer(self.update.seed, "forward", number, self.ranks.rank))

    def _gradients(self, batches: list[Batch], counts: Mapping[str, float], step: int) -> Sums:
        try:
            return self.parallel.gradients(batches, counts, self.update.scale)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"step {step}: there is not enough memory for {batches[0].tokens.shape[0]} "
                f"sequences at once ({_first_line(error)}); {SMALLER}; then {RESUMES}"
            ) from error

    def dry_run(self, batches: Batches, number: int) -> None:
        """Forward and backward of the first micro-batch of a step, without an update: a step that
        does not fit is met before anything was trained, and compilation happens now.

        Raises:
            OutOfMemory: it does not fit.
        """
        first = self._given(batches, number)
        if self.parallel.pipeline is None:  # which cannot do with one
            first = first[:1]
        self._seed(number)
        self._gradients(first, dict.fromkeys(first[0].counts, 1.0), number + 1)
        self.update.clear()

    def _counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Of the whole step, over micro-batches and ranks."""
        names = list(batches[0].counts)
        own = [sum(batch.counts[name] for batch in batches) for name in names]
        return dict(zip(names, self.ranks.sum(own, self.parallel.device), strict=True))

    def _reduce(
        self, sums: Sums, norm: float, batches: Sequence[Batch], counts: Mapping[str, float]
    ) -> tuple[float, float, dict[str, float]]:
        """The loss, the gradient norm, and the mean of every term and metric: the same on all
        ranks, which decide by them.
        """
        totals = sums.totals()
        known = {
            name: sum(batch.metrics[name] for batch in batches) / len(batches)
            for name in batches[0].metrics
        }
        if twice := totals.keys() & known.keys():
            raise ValueError(f"{min(twice)}: a metric of the batch and one of the loss: rename one")
        values = [*totals.values(), *known.values(), norm]
        *reduced, norm = self.ranks.sum(values, self.parallel.device)
        found = dict(zip([*totals, *known], reduced, strict=True))
        metrics = {name: found[name] / self.ranks.count for name in known}
        terms = {**sums.terms, **sums.metrics}
        metrics |= {name: found[name] / divisor(counts, terms[name].per) for name in totals}
        loss = sum(term.weight * metrics[name] for name, term in sums.terms.items())
        loss, norm = self.ranks.agreed([loss, norm / self.ranks.count], self.parallel.device)
        return loss, norm, metrics

    def _total(self, statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The statistics of all ranks, on the CPU."""
        if not statistics:
            return {}
        flat = torch.cat([value.float() for value in statistics.values()]).tolist()
        whole = torch.tensor(self.ranks.sum(flat, self.parallel.device))
        parts = whole.split([len(value) for value in statistics.values()])
        return dict(zip(statistics, parts, strict=True))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
