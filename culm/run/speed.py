"""What the speed of a run is compared with: FLOPs of its tokens, and the peak of its devices."""

from __future__ import annotations

from culm import log
from culm.dtype import activations_of
from culm.objective.objective import Objective
from culm.plan.dry_run import set_backend
from culm.plan.layout import Layout
from culm.plan.utilisation import flops_per_token, peak_rate
from culm.rollout.buffer import Rollouts
from culm.run.assemble import Assembly
from culm.run.objective import precision_of
from culm.run.step import RunData, sequences_of, step_of
from culm.train.speed import Speed


def speed_of(run: Assembly, hollow: Objective, rows: RunData) -> Speed:
    """Measures the speed of each step, with `mfu` unless the model samples its own data, which
    takes time that is not training. Says what the share is of.

    hollow: the objective on the meta device, not parallelised (`culm.plan.utilisation.on_meta`).
    """
    if isinstance(rows, Rollouts):
        return Speed(run.device)
    precision = precision_of(run.config, run.device)
    step = step_of(run.config, run.context, Layout(), sequences_of(rows))
    gpu, wanted = run.device.type == "cuda", run.config.train.attention_backend
    set_backend(hollow, wanted, gpu, activations_of(precision))
    try:
        each = flops_per_token(hollow, step)
    except Exception as error:  # of anyone's objective, that wants numbers
        log.say(f"No mfu: the FLOPs of {type(hollow).__name__} cannot be counted ({error}).")
        return Speed(run.device)
    peak, source = peak_rate(run.device, precision)
    log.say(f"mfu: {each:.3g} FLOPs a token, of {peak:.3g} FLOP/s a device ({source}).")
    return Speed(run.device, each, peak * run.ranks.processes)
