"""What the speed of a run is compared with: FLOPs of its tokens, and the peak of its devices."""

from __future__ import annotations

from culm import log
from culm.data.loader import Loader
from culm.data.mixture import Mixture
from culm.data.stream.batches import StreamBatches
from culm.objective.objective import Objective
from culm.plan.layout import Layout
from culm.plan.needs import Step
from culm.plan.utilisation import flops_per_token, peak_rate
from culm.rollout.buffer import Rollouts
from culm.run.assemble import Assembly
from culm.run.objective import precision_of
from culm.run.settings import RunConfig
from culm.train.speed import Speed

RunData = Loader | Mixture | StreamBatches | Rollouts


def step_of(config: RunConfig, context: int, layout: Layout, sequences: int) -> Step:
    """The shape of a step of a run. sequences: in a row, such as 2 of a pair."""
    train = config.train
    return Step(
        context, train.batch_size, train.at_once, sequences=sequences,
        packed=train.objective.reads == "documents", columns=train.objective.columns,
        layout=layout, in_backward=train.optimizer_in_backward,
    )  # fmt: skip


def speed_of(run: Assembly, hollow: Objective, rows: RunData) -> Speed:
    """Measures the speed of each step, with `mfu` unless the model samples its own data, which
    takes time that is not training. Says what the share is of.

    hollow: the objective on the meta device, not parallelised (`culm.plan.utilisation.on_meta`).
    """
    if isinstance(rows, Rollouts):
        return Speed(run.device)
    precision = precision_of(run.config, run.device)
    step = step_of(run.config, run.context, Layout(), _sequences(rows))
    try:
        each = flops_per_token(hollow, step, on_gpu=run.device.type == "cuda")
    except Exception as error:  # of anyone's objective, that wants numbers
        log.say(f"No mfu: the FLOPs of {type(hollow).__name__} cannot be counted ({error}).")
        return Speed(run.device)
    peak, source = peak_rate(run.device, precision)
    log.say(f"mfu: {each:.3g} FLOPs a token, of {peak:.3g} FLOP/s a device ({source}).")
    return Speed(run.device, each, peak * run.ranks.processes)


def _sequences(rows: Loader | Mixture | StreamBatches) -> int:
    if isinstance(rows, Mixture):
        return max(one.group for one in rows.corpora)
    return rows.group if isinstance(rows, Loader) else 1
