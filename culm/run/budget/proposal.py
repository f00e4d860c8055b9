"""The run that a scaling law proposes for a time.

    size     the one of the family (`culm.plan.family`) with the lowest expected loss, when all the
             time is spent on tokens; text that repeats counts less (arXiv 2305.16264)
    batch    as `culm.run.dial` has it
    rate     that of the smallest micro-run, transferred (`culm.run.budget.micro_runs.transferred`)
    memory   the largest micro-batch and the cheapest activation checkpointing that fit

N: the parameters that a token is multiplied with. D: the tokens that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from culm.device import memory_bytes
from culm.model.transformer import TransformerConfig
from culm.plan.family import Family
from culm.plan.layout import Layout
from culm.plan.memory_fit import ROOM
from culm.plan.scaling import Law, Point, effective_tokens, fit
from culm.plan.speed import Clock
from culm.plan.target import Target
from culm.run.budget.micro_runs import Done, train_settings, transferred, with_changes
from culm.run.dial import batch_size_for
from culm.run.memory_fit import Planned
from culm.run.settings import RunConfig

MARGIN = 0.95  # of the time is training; the rest goes into evaluations and checkpoints
BEYOND = 4  # sizes above the best one are tried
LARGEST = 64  # sizes of a family that are looked at


@dataclass(frozen=True)
class Choice:
    """A size and the tokens that it reads in the time. loss: expected bits per byte."""

    size: TransformerConfig
    tokens: float
    loss: float


@dataclass(frozen=True)
class Proposal:
    """config: of the run. low, high: where its bits per byte, `loss`, lie with a probability of
    0.9. epochs: how often it reads the text. beyond: its N D divided by that of the largest
    micro-run. seconds: of its training.
    """

    config: RunConfig
    parameters: int
    tokens: int
    loss: float
    low: float
    high: float
    epochs: float
    beyond: float
    seconds: float


@dataclass(frozen=True)
class Machine:
    """Where the run will train. device: of this machine. target: another one, if it is that.
    ranks: processes that share the run.
    """

    device: torch.device
    target: Target | None = None
    ranks: int = 1

    @property
    def room(self) -> float | None:
        """Bytes for tensors; None if that is unknown."""
        memory = self.target.memory if self.target else memory_bytes(self.device)
        return None if memory is None else ROOM * memory

    def fitted(self, config: RunConfig) -> RunConfig | None:
        """The run with activation checkpointing and smaller micro-batches where it needs them; None
        if it does not fit with these.
        """
        if self.room is None:
            return config
        layout, gpu = Layout(config.parallel, self.ranks), self.target or self.device.type == "cuda"
        found = Planned(config, layout, gpu=bool(gpu)).fit(self.room)
        if found is None:
            return None
        rows = min(found.rows, config.train.at_once)
        update = {
            "micro_batch_size": rows, "activation_checkpointing": found.activation_checkpointing
        }  # fmt: skip
        return config.model_copy(update={"train": config.train.model_copy(update=update)})


def law_of(family: Family, done: Sequence[Done], unique: int) -> Law:
    """Fitted to micro-runs on a text of this many tokens."""
    return fit([
        Point(family.parameters(one.run.model), effective_tokens(one.tokens, unique), one.loss)
        for one in done
    ])  # fmt: skip


def clock_of(family: Family, done: Sequence[Done], machine: Machine, precision: str) -> Clock:
    """Of the machine: as measured in the micro-runs, or of the target's datasheet."""
    if machine.target is not None:
        return Clock(0.0, machine.ranks * machine.target.rate(precision))
    flops = [family.cost(one.run.model).training_flops for one in done]
    return Clock.measured(flops, [one.per_token / machine.ranks for one in done])


def choices(family: Family, law: Law, clock: Clock, seconds: float, unique: int) -> list[Choice]:
    """The sizes of a family that are trained for the whole time, best first."""
    found: list[Choice] = []
    for size in islice(family.sizes(), LARGEST):
        tokens = MARGIN * seconds / clock.seconds(family.cost(size).training_flops)
        loss = law.loss(family.parameters(size), effective_tokens(tokens, unique))
        found.append(Choice(size, tokens, loss))
        best = min(found, key=lambda choice: choice.loss)
        if len(found) > found.index(best) + BEYOND:
            break
    return sorted(found, key=lambda choice: choice.loss)


class Proposer:
    """Makes runs of choices.

    corpus: the prepared text, of `unique` tokens. rate: that was best for the smallest micro-run.
    ranks: that have rows of their own, over which a batch is divided.
    """

    def __init__(
        self, config: RunConfig, family: Family, corpus: Path, law: Law, done: Sequence[Done],
        rate: float, unique: int, ranks: int = 1,
    ) -> None:  # fmt: skip
        self.config, self.family, self.corpus, self.law = config, family, corpus, law
        self.rate, self.unique, self.ranks = rate, unique, ranks
        self.narrow = min(one.run.model.width for one in done)
        self.largest = max(family.parameters(one.run.model) * one.tokens for one in done)

    def run(self, choice: Choice) -> RunConfig:
        """Its settings; the micro-batch is of a size that a small machine computes well."""
        size, context = choice.size, self.family.context
        rate = transferred(self.rate, self.config, self.narrow, size.width)
        rows = max(1, round(batch_size_for(choice.tokens, context) / self.ranks)) * self.ranks
        train = train_settings(choice.tokens, rows, context, float(f"{rate:.2g}"))
        model = size.model_dump(mode="json")
        return with_changes(self.config, self.corpus, {"model": model, "train": train})

    def proposal(self, config: RunConfig, seconds: float) -> Proposal:
        """What a run is expected to come to. seconds: of its training."""
        assert config.model is not None
        parameters, train = self.family.parameters(config.model), config.train
        tokens = train.steps * train.batch_size * self.family.context
        read = effective_tokens(tokens, self.unique)
        low, high = self.law.interval(parameters, read)
        return Proposal(
            config, parameters, tokens, self.law.loss(parameters, read), low, high,
            tokens / self.unique, parameters * tokens / self.largest, seconds,
        )  # fmt: skip
