"""The shape of a run's step, as plans and rates need it."""

from __future__ import annotations

from culm.batch import PACKED
from culm.data.loader import Loader
from culm.data.mixture import Mixture
from culm.data.stream.batches import StreamBatches
from culm.plan.layout import Layout
from culm.plan.needs import Step
from culm.rollout.buffer import Rollouts
from culm.run.settings import RunConfig

RunData = Loader | Mixture | StreamBatches | Rollouts


def step_of(config: RunConfig, context: int, layout: Layout, sequences: int = 1) -> Step:
    """The shape of a step. context: tokens of a row. sequences: in a row, such as 2 of a pair."""
    train = config.train
    return Step(
        context, train.batch_size, train.at_once, sequences=sequences,
        packed=train.objective.reads in PACKED, columns=train.objective.columns,
        layout=layout, in_backward=train.optimizer_in_backward,
        measures_updates=train.update_ratio_every is not None,
    )  # fmt: skip


def sequences_of(rows: RunData) -> int:
    """Sequences in a row of what a run reads: more than one of pairs and rankings."""
    if isinstance(rows, Mixture):
        return max(one.group for one in rows.corpora)
    return rows.group if isinstance(rows, Loader) else 1
