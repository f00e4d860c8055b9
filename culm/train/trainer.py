"""The one training loop. It names no model and no loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from culm.batch import Batch
from culm.parallel.parallelize import Parallel
from culm.parallel.ranks import Ranks
from culm.seed import keyed_integer


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, why, and what to try."""


class Batches(Protocol):
    """A file, a stream, or a model that writes its own data: the loop cannot tell."""

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of one optimizer step, for this rank."""
        ...


class RateSchedule(Protocol):
    def factor(self, step: int, steps: int) -> float: ...


@dataclass(frozen=True)
class Step:
    """What is known after a step; hooks see this and nothing else.

    number: steps finished. loss, metrics: means over the step's weight; `auxiliary`, where the
    objective has such a loss, over its tokens. grad_norm: before clipping.
    rate: of the first group of parameters. tokens: read since the start of the run, padding not
    counted. seconds: from asking for the data of this step to its update, without hooks.
    last: of the run. stopped: the run was asked to stop, so nothing follows for now.
    """

    number: int
    steps: int
    loss: float
    grad_norm: float
    rate: float
    tokens: int
    seconds: float
    metrics: Mapping[str, float]
    last: bool
    stopped: bool


Hook = Callable[[Step], None]
Between = Callable[[Sequence[Tensor]], Mapping[str, float]]


class Trainer:
    """Turns batches into steps.

    Per step: forward and backward of every micro-batch, one division by the weight of the whole
    step (over micro-batches and ranks), clipping, one optimizer step. What is random in a forward
    (dropout) is drawn from the seed, the step and the rank, so that a resumed run draws the same.

    between: called before each update with the counts of the whole step (`culm.batch.Loss`), the
    same on all ranks; gives further metrics.
    """

    def __init__(
        self,
        parallel: Parallel,
        optimizer: torch.optim.Optimizer,
        schedule: RateSchedule,
        *,
        clip: float = 1.0,
        seed: int = 0,
        ranks: Ranks = Ranks(),
        hooks: Iterable[Hook] = (),
        between: Between = lambda counts: {},
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.parallel, self.optimizer, self.schedule = parallel, optimizer, schedule
        self.clip, self.seed, self.ranks = clip, seed, ranks
        self.hooks, self.between, self.stop = tuple(hooks), between, stop
        named = parallel.objective.named_parameters()
        self.parameters = [p for _, p in named if p.requires_grad]
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]

    def fit(self, batches: Batches, steps: int, start: int = 0, tokens: int = 0) -> int:
        """Steps start .. steps - 1; returns how many are finished. `tokens`: read before."""
        for number in range(start, steps):
            began = time.perf_counter()
            step = self._step(batches.step(number), number, steps, tokens, began)
            tokens = step.tokens
            for hook in self.hooks:
                hook(step)
            if step.stopped:
                return step.number
        return max(start, steps)

    def _step(
        self, batches: list[Batch], number: int, steps: int, tokens: int, began: float
    ) -> Step:
        device = self.parameters[0].device
        known = [float(sum(b.weight for b in batches)), float(sum(b.size for b in batches))]
        weight, seen = self.ranks.sum(known, device)
        finished = number + 1
        if not weight:
            raise TrainingError(f"step {finished}: nothing in its batch is learned")
        rate = self._set_rate(number, steps)
        torch.manual_seed(keyed_integer(self.seed, "forward", number, self.ranks.rank))
        sums, counts = self._accumulate(batches, weight, seen, device)
        norm = self.parallel.clip(self.parameters, self.clip)
        metrics = self._reduce(sums, batches, weight, device)
        if "auxiliary" in metrics:
            metrics["auxiliary"] *= weight / seen
        loss, stopped = metrics.pop("loss"), metrics.pop("stop") > 0
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise TrainingError(
                f"step {finished}: the loss is {loss}, the gradient norm {norm}; lower "
                "train.optimizer.rate or look at the data of this step (checkpoints are unchanged)"
            )
        metrics |= self.between(self._total(counts, device))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Step(
            finished, steps, loss, norm, rate, tokens + int(seen), time.perf_counter() - began,
            metrics, last=finished == steps, stopped=stopped,
        )  # fmt: skip

    def _set_rate(self, number: int, steps: int) -> float:
        factor = self.schedule.factor(number, steps)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor
        return self.peak_rates[0] * factor

    def _accumulate(
        self, batches: list[Batch], weight: float, tokens: float, device: torch.device
    ) -> tuple[dict[str, float], list[Tensor]]:
        """Gradients of all micro-batches, and the sums of their losses, metrics and counts.

        One of them is on the device at a time, and the sums are read once: each reading waits for
        the device.
        """
        found: dict[str, list[Tensor]] = {}
        counts: list[Tensor] = []
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with self.parallel.sync(last):
                loss = self.parallel.forward(batch.to(device), last)
                # Data-parallel wrappers average gradients; a sum is wanted.
                (loss.mean(weight, tokens) * self.ranks.count).backward()
            beside = {} if loss.auxiliary is None else {"auxiliary": loss.auxiliary}
            for name, value in {"loss": loss.total, **beside, **loss.metrics}.items():
                found.setdefault(name, []).append(value.detach())
            known = counts or [torch.zeros_like(count) for count in loss.counts]
            counts = [a + b for a, b in zip(known, loss.counts, strict=True)]
        numbers = torch.stack([torch.stack(values) for values in found.values()]).tolist()
        return dict(zip(found, map(sum, numbers), strict=True)), counts

    def _total(self, counts: list[Tensor], device: torch.device) -> list[Tensor]:
        """Of all ranks, on the CPU."""
        flat = [number for count in counts for number in count.tolist()]
        whole = torch.tensor(self.ranks.sum(flat, device) if flat else [])
        return list(whole.split([len(count) for count in counts]))

    def _reduce(
        self, sums: dict[str, float], batches: list[Batch], weight: float, device: torch.device
    ) -> dict[str, float]:
        """Sums divided by the weight; what batches knew beforehand, averaged over them; and `stop`,
        above 0 where any rank was asked to, so that all stop after the same step."""
        given = {
            name: sum(b.metrics[name] for b in batches) / len(batches)
            for name in batches[0].metrics
        }
        given["stop"] = float(self.stop())
        totals = self.ranks.sum([*sums.values(), *given.values()], device)
        values = dict(zip([*sums, *given], totals, strict=True))
        return {n: v / (weight if n in sums else self.ranks.count) for n, v in values.items()}
