"""What a finished run has to say about itself: it learned nothing, or got worse."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from culm.dtensor import local_shard
from culm.parallel.ranks import Ranks
from culm.train.idle import idle_reason

WORSE = 1.1  # a loss that grew by this factor is mentioned, a reward that fell by a tenth
FEW = 20  # steps; in fewer, losses of first and last steps are noise
PART = 1 << 20  # numbers that are summed at once
LEAST = 1e-3  # a smaller fall of a reward is not mentioned: the mean of whitened ones is zero
MEAN = 5  # steps at the start and at the end that are averaged


def verdict(
    lines: Sequence[Mapping[str, Any]], first: Mapping[str, Any], last: Mapping[str, Any],
    changed: bool, rewarded: bool,
) -> list[str]:  # fmt: skip
    """Warnings, a sentence each.

    lines: of `metrics.jsonl`. first, last: what was measured before the first step and after the
    last. changed: whether any weight did. rewarded: losses of different steps mean nothing.
    """
    return [
        *_unchanged(changed),
        *_idle(lines),
        *_worse(lines, first, last, rewarded),
    ]


def _unchanged(changed: bool) -> Iterator[str]:
    if not changed:
        yield "No weight changed: the learning rate is too small, or nothing could be learned."


def _idle(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    reasons = [reason for line in lines if (reason := idle_reason(line)) is not None]
    if len(reasons) > len(lines) / 2:
        yield (
            f"Nothing was learned in {len(reasons):,} of {len(lines):,} steps, since {reasons[-1]}"
        )


def _worse(
    lines: Sequence[Mapping[str, Any]], first: Mapping[str, Any], last: Mapping[str, Any],
    rewarded: bool,
) -> Iterator[str]:  # fmt: skip
    advice = "; a lower train.optimizer.rate may help"
    before, after = first.get("loss"), last.get("loss")
    if before is not None and after is not None and after > WORSE * before:
        yield f"The held-out loss rose from {before:.3f} to {after:.3f}{advice}."
    name = "reward" if rewarded else "loss"
    values = [line[name] for line in lines if math.isfinite(line[name])]  # others were left out
    if len(values) < FEW:
        return
    start, end = fmean(values[:MEAN]), fmean(values[-MEAN:])
    if not rewarded and end > WORSE * start > 0:
        yield f"The loss rose from {start:.3f} to {end:.3f}{advice}."
    if rewarded and start - end > max((WORSE - 1) * abs(start), LEAST):  # both may be negative
        yield f"The reward fell from {start:.3f} to {end:.3f}{advice}."


@torch.no_grad()
def sums_of(module: nn.Module) -> list[float]:
    """Two numbers for each trained parameter of this rank, which an update moves."""
    found: list[Tensor] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            own = local_shard(parameter.detach())
            # In parts: each is copied to float64.
            sums = [part.sum(dtype=torch.float64) for part in own.flatten().split(PART)]
            found += [torch.stack(sums).sum(), torch.linalg.vector_norm(own)]
    return [float(value) for value in found]


def any_changed(before: list[float], module: nn.Module, ranks: Ranks, device: Any) -> bool:
    """Whether a trained parameter is not what `sums_of` saw; every rank takes part."""
    return ranks.any(before != sums_of(module), device)
