"""A prepared rollout as tensors of a checkpoint, whole whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.batch import IGNORED, Batch, counts_of
from culm.parallel.ranks import Ranks
from culm.rollout.settings import RolloutConfig

PADDING = {"targets": IGNORED}
METRIC, EXTRA = "metric.", "extra."


def stored(batch: Batch, batches: int, ranks: Ranks) -> dict[str, Tensor]:
    """The rows of all ranks, batch by batch; every rank takes part.

    batches: of the rollout; each rank holds its share of every one, in order.
    """
    assert batch.lengths is not None
    own = {
        "tokens": batch.tokens,
        "targets": batch.targets,
        "positions": batch.positions,
        "lengths": batch.lengths,
        **{f"{EXTRA}{name}": value for name, value in batch.extra.items()},
    }
    every = ranks.gather(own)
    longest = max(part["tokens"].shape[1] for part in every)
    found = {}
    for name in own:
        parts = [_widened(part[name], longest, name) for part in every]
        shares = [part.unflatten(0, (batches, -1)) for part in parts]
        found[name] = torch.cat(shares, dim=1).flatten(0, 1)
    known = ranks.gather(batch.metrics)
    for name in batch.metrics:
        mean = sum(metrics[name] for metrics in known) / ranks.count
        found[f"{METRIC}{name}"] = torch.tensor(mean, dtype=torch.float64)
    return found


def restored(state: Mapping[str, Tensor], config: RolloutConfig, ranks: Ranks) -> Batch:
    """This rank's share of what `stored` gave."""
    rows = {name: value for name, value in state.items() if not name.startswith(METRIC)}
    own = {}
    for name, value in rows.items():
        batches = value.unflatten(0, (config.batches, ranks.count, -1))
        own[name] = batches[:, ranks.rank].flatten(0, 1)
    return Batch(
        tokens=own["tokens"],
        targets=own["targets"],
        positions=own["positions"],
        lengths=own["lengths"],
        counts=counts_of(own["targets"], own["lengths"]),
        extra={n.removeprefix(EXTRA): v for n, v in own.items() if n.startswith(EXTRA)},
        metrics={
            name.removeprefix(METRIC): float(value)
            for name, value in state.items()
            if name.startswith(METRIC)
        },
        temperature=config.temperature,
    )


def _widened(value: Tensor, longest: int, name: str) -> Tensor:
    """The same with columns up to `longest`, where it has columns."""
    if value.dim() < 2:
        return value
    return F.pad(value, (0, longest - value.shape[1]), value=PADDING.get(name, 0))
