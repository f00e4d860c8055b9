"""The best run for a time: micro-runs, a scaling law that is fitted to them, and a proposal.

rate     three to six rates on the smallest model; the vertex of a parabola over log rate, which
         other widths take by the rule of `culm.run.budget.micro_runs.transferred`
law      E + A / N^alpha + B / D^beta, from three sizes in three lengths with that rate
then     `culm.run.budget.proposal`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from culm import log
from culm.config import SettingError
from culm.device import choose_device
from culm.plan.family import Family
from culm.plan.scaling import Law
from culm.plan.speed import Clock, speed_of
from culm.plan.target import Target
from culm.run.budget.ladder import best_rate, ladder_of
from culm.run.budget.micro_runs import Done, MicroRuns
from culm.run.budget.proposal import (
    MARGIN,
    Choice,
    Machine,
    Proposal,
    Proposer,
    choices,
    clock_of,
    law_of,
)
from culm.run.objective import precision_of
from culm.run.settings import RunConfig
from culm.run.train import seconds_per_step


@dataclass(frozen=True)
class Budgeted:
    """done: the micro-runs. rate: that was best for the smallest; inside: whether a higher and a
    lower one were tried.
    """

    family: Family
    done: Sequence[Done]
    rate: float
    inside: bool
    law: Law
    clock: Clock
    proposal: Proposal


def propose(
    config: RunConfig, seconds: float, target: Target | None = None, ranks: int = 1
) -> Budgeted:
    """Make the micro-runs and say what to train in this many seconds, those of the micro-runs
    included where they run on the same machine.

    Raises:
        SettingError: no size can be proposed for this run, or the time is too short.
    """
    micro = MicroRuns(config)
    machine = Machine(choose_device(config.device), target, ranks)
    precision = precision_of(config, machine.device)
    family = Family(micro.model, config.train.context or micro.model.context)
    rule = config.train.optimizer
    here = speed_of(micro.model, rule, machine.device, precision, family.context)
    config = _settled(config, "bf16" if target else precision)
    there = ranks * (target.rate(config.train.precision) if target else here.rate)
    # Before the data, which may take hours: a budget that pays for nothing is refused now.
    ladder = ladder_of(config, family, seconds, here, there, micro.folder)
    unique = micro.prepare().splits["train"].tokens
    log.say(
        f"Micro-runs in {micro.folder}: three to six learning rates, then three sizes in three "
        f"lengths, about {ladder.seconds:,.0f} seconds. Finished ones are not trained again."
    )
    tried: list[Done] = []

    def loss_at(rate: float) -> float:
        tried.append(micro.result(ladder.with_rate(rate), family.context))
        return tried[-1].loss

    rate, inside = best_rate(loss_at, ladder.rate)
    grid = [micro.result(one, family.context) for one in ladder.grid(config, rate)]
    done = list({one.run: one for one in (*tried, *grid)}.values())
    law = law_of(family, grid, unique)
    clock = clock_of(family, done, machine, config.train.precision)
    left = seconds if target else seconds - sum(one.seconds for one in done)
    if left <= 0:
        raise SettingError(f"--budget: the micro-runs took all of the {seconds:,.0f} seconds")
    proposer = Proposer(
        config, family, micro.corpus, law, grid, rate, unique, config.parallel.data_ranks(ranks)
    )  # fmt: skip
    fitted = _fitted(machine, proposer, choices(family, law, clock, left, unique))
    if target is None and ranks == 1:  # then the steps can be timed
        fitted = _with_steps(fitted, max(1, round(MARGIN * left / seconds_per_step(fitted))))
    proposal = proposer.proposal(fitted, left)
    return Budgeted(family, done, rate, inside, law, clock, proposal)


def _fitted(machine: Machine, proposer: Proposer, found: Sequence[Choice]) -> RunConfig:
    """The best choice that fits the memory."""
    for choice in found:
        config = machine.fitted(proposer.run(choice))
        if config is not None:
            return config
    raise SettingError("--budget: no size fits the memory; give a shorter train.context")


def _settled(config: RunConfig, precision: str) -> RunConfig:
    """With a precision, unless one was given."""
    given = config.train.precision
    update = {"precision": precision if given == "auto" else given}
    return config.model_copy(update={"train": config.train.model_copy(update=update)})


def _with_steps(config: RunConfig, steps: int) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})
