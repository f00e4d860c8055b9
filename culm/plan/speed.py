"""How fast this machine trains, measured with a layer and with small models."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from culm.batch import Batch
from culm.dtype import activations_of
from culm.model.backend import Choice, place
from culm.model.transformer import TransformerConfig
from culm.objective.next_token import NextToken, NextTokenObjective
from culm.optim.optimizer import OptimizerConfig
from culm.plan.dry_run import ONES, meta_batch, set_backend, training_flops

TOKENS = 1024  # of the trial; fewer do not fill the device
VOCABULARY = 4096  # of the trial; the head of a large model would take longer than its layer
PASSES = 20  # at most; the best time counts, since other work only delays
SECONDS = 1.5  # after which no further pass begins


@dataclass(frozen=True)
class Clock:
    """How long a token takes in training: `fixed` seconds, and its FLOPs at `rate` FLOP/s."""

    fixed: float
    rate: float

    def seconds(self, flops: float) -> float:
        """Of a token with this many FLOPs."""
        return self.fixed + flops / self.rate

    @staticmethod
    def measured(flops: Sequence[float], seconds: Sequence[float]) -> Clock:
        """The least-squares line through tokens of several models."""
        x, y = (torch.tensor(one, dtype=torch.float64) for one in (flops, seconds))
        x_mean, y_mean = x.mean(), y.mean()
        slope = float((x - x_mean) @ (y - y_mean) / (x - x_mean).square().sum())
        fixed = float(y_mean - slope * x_mean)
        if slope <= 0 or fixed < 0:  # through the origin then: noise, or models of one size
            return Clock(0.0, float(x.sum() / y.sum()))
        return Clock(fixed, 1 / slope)


@dataclass(frozen=True)
class Speed:
    """How fast a machine trains. rate: FLOP/s. overhead: gives the seconds that a step of a model
    takes besides its FLOPs, which are most of a step of a small model.
    """

    rate: float
    overhead: Callable[[TransformerConfig], float]


def speed_of(
    config: TransformerConfig, optimizer: OptimizerConfig, device: torch.device, precision: str,
    context: int,
) -> Speed:  # fmt: skip
    """Of this machine for models with these settings in any size."""
    rate = training_rate(config, device, precision, context)

    def overhead(model: TransformerConfig) -> float:
        return step_overhead(model, optimizer, device, precision, context, rate)

    return Speed(rate, overhead)


def training_rate(
    config: TransformerConfig, device: torch.device, precision: str, context: int,
    backend: Choice = "auto",
) -> float:  # fmt: skip
    """FLOP/s of forward and backward through a layer of these settings.

    Everything but matmuls (norms, rotations, softmax) is in the time only, so a run's FLOPs
    divided by this rate is close to its time, if its steps are large.
    """
    smaller = {"layers": 1, "vocabulary": min(config.vocabulary, VOCABULARY)}
    config = config.model_copy(update=smaller)
    context = min(context, TOKENS)
    rows = max(1, TOKENS // context)
    model = place(config.build(device=device), device, activations_of(precision), backend)
    flops = _flops(config, rows, context, device, precision, backend)
    return flops / _best_time(_passes(NextTokenObjective(NextToken(), model), rows, context))


def step_overhead(
    config: TransformerConfig, optimizer: OptimizerConfig, device: torch.device, precision: str,
    context: int, rate: float,
) -> float:  # fmt: skip
    """Seconds that a step of one row takes besides its FLOPs, at `rate` FLOP/s: the update, and
    what starts the operations.
    """
    model = place(config.build(device=device), device, activations_of(precision))
    objective = NextTokenObjective(NextToken(), model)
    rule, one_pass = optimizer.build(objective), _passes(objective, 1, context)

    def step() -> None:
        one_pass()
        rule.step()
        rule.zero_grad()
        _wait_for(next(objective.parameters()))

    return max(0.0, _best_time(step) - _flops(config, 1, context, device, precision) / rate)


def _flops(
    config: TransformerConfig, rows: int, context: int, device: torch.device, precision: str,
    backend: Choice = "auto",
) -> float:  # fmt: skip
    hollow = NextTokenObjective(NextToken(), config.build(device="meta"))
    set_backend(hollow, backend, device.type == "cuda", activations_of(precision))
    return training_flops(hollow, meta_batch(rows, context))


def _passes(objective: NextTokenObjective, rows: int, context: int) -> Callable[[], None]:
    """Forward and backward, which return when the device has done them."""
    device = objective.model.device
    tokens = torch.zeros(rows, context, dtype=torch.int64, device=device)
    batch = Batch(tokens, tokens, torch.arange(context, device=device).expand_as(tokens))

    def one_pass() -> None:
        loss = objective(batch).mean(ONES)
        loss.backward()
        _wait_for(loss)

    return one_pass


def _wait_for(tensor: Tensor) -> None:
    """Until the device has done all that was asked of it before."""
    tensor.detach().flatten()[0].item()


def _best_time(work: Callable[[], None]) -> float:
    """Seconds of the fastest of several calls, after one that warms up."""
    work()
    spent, best = 0.0, float("inf")
    for _ in range(PASSES):
        if spent > SECONDS:
            break
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
        spent += time.perf_counter() - began
    return best
