"""How fast this machine trains, measured with one layer of the model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from culm.batch import Batch
from culm.dtype import activations_of
from culm.model.backend import place
from culm.model.transformer import TransformerConfig
from culm.objective.next_token import NextToken, NextTokenObjective
from culm.plan.dry_run import ONES, meta_batch, training_flops

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


def training_rate(
    config: TransformerConfig, device: torch.device, precision: str, context: int
) -> float:
    """FLOP/s of forward and backward through a layer of these settings.

    Everything but matmuls (norms, rotations, softmax) is in the time only, so a run's FLOPs
    divided by this rate is close to its time. The first pass, which warms up, is not counted.
    """
    smaller = {"layers": 1, "vocabulary": min(config.vocabulary, VOCABULARY)}
    config = config.model_copy(update=smaller)
    context = min(context, TOKENS)
    rows = max(1, TOKENS // context)
    flops = training_flops(
        NextTokenObjective(NextToken(), config.build(device="meta")), meta_batch(rows, context)
    )
    model = place(config.build(device=device), device, activations_of(precision))
    objective = NextTokenObjective(NextToken(), model)
    tokens = torch.zeros(rows, context, dtype=torch.int64, device=device)
    batch = Batch(tokens, tokens, torch.arange(context, device=device).expand_as(tokens))
    objective(batch).mean(ONES).backward()
    spent, best = 0.0, float("inf")
    for _ in range(PASSES):
        if spent > SECONDS:
            break
        began = time.perf_counter()
        loss = objective(batch).mean(ONES)
        loss.backward()
        float(loss.detach())  # waits for the device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
        spent += time.perf_counter() - began
    return flops / best
