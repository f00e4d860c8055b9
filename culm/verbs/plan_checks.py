"""What a plan checks of a run, as the run does before its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from culm.adapt.float8 import check_float8
from culm.dtype import activations_of
from culm.model.backend import Choice, choose_backend
from culm.objective.objective import Objective
from culm.parallel.check import check_divisible, check_layout, check_micro_batches, check_pipeline
from culm.parallel.ranks import Ranks
from culm.plan.layout import Layout
from culm.plan.target import Target
from culm.run.assemble import Assembly, evaluation_of, training_batches
from culm.run.finish import check_outputs
from culm.run.objective import ModelLoader, precision_of
from culm.run.reads import digest_of
from culm.run.resume import check_resumable
from culm.run.settings import RunConfig
from culm.run.start import model_id
from culm.run.update import check_in_backward
from culm.source.remote import Unreachable
from culm.tokenizer.tokenizer import Tokenizer
from culm.train.checkpoint.folder import Progress
from culm.verbs.preview import Preview

META = torch.device("meta")

T = TypeVar("T")


@dataclass
class Findings:
    """What was found out so far; a part that failed is None and a sentence in `problems`, or in
    `unread` if it is data that the target may reach.
    """

    config: RunConfig
    ranks: int
    target: Target | None = None
    problems: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def attempt(self, work: Callable[[], T]) -> T | None:
        """The result, or None where the settings do not allow it."""
        try:
            return work()
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            elsewhere = self.target is not None and isinstance(error, Unreachable)
            said = self.unread if elsewhere else self.problems
            if str(error) not in said:
                said.append(str(error))
            return None


def with_precision(found: Findings, device: torch.device) -> RunConfig:
    """The settings with the precision of the device; all targets of the table prefer bf16."""
    precision: str = found.config.train.precision
    if found.target is None:
        precision = precision_of(found.config, device)
    elif precision == "auto":
        precision = "bf16"
    train = found.config.train.model_copy(update={"precision": precision})
    return found.config.model_copy(update={"train": train})


def assembly_of(
    config: RunConfig, ranks: int, objective: Objective, tokenizer: Tokenizer, context: int,
    load: ModelLoader, seen: Preview | None,
) -> Assembly:  # fmt: skip
    """The run on the meta device, with the corpus that the plan prepared, if it has one."""
    own, prepared = config, None if seen is None else seen.prepared
    if prepared is not None:
        own = config.model_copy(
            update={"data": config.data.model_copy(update={"prepared": prepared})}
        )
    return Assembly(
        own, Path(config.folder), META, objective, tokenizer, context, load,
        ranks=Ranks(count=config.parallel.data_ranks(ranks)),
    )  # fmt: skip


def try_kernels(found: Findings, config: RunConfig, device: torch.device) -> Choice:
    """Whether the device has what the precision and the attention need; of a target it is not
    known. Gives the attention backend to plan with, which is not the chosen one if that fails.
    """
    if found.target is not None:
        return "auto"
    train = config.train
    if train.precision == "fp8":
        found.attempt(lambda: check_float8(device))
    backend, dtype = train.attention_backend, activations_of(train.precision)
    return found.attempt(lambda: choose_backend(device, backend, dtype, training=True)) or "auto"


def try_parts(
    found: Findings, run: Assembly, data: str | None, then: Progress | None
) -> None:  # fmt: skip
    """What the run checks before its first step.

    data: fingerprint of its data, where it is known; not of rollouts. then: the checkpoint from
    which it would resume.
    """
    found.attempt(lambda: evaluation_of(run).check())
    found.attempt(lambda: check_outputs(run))
    if run.config.train.objective.reads == "rollouts":
        rollouts = found.attempt(lambda: training_batches(run))
        data = None if rollouts is None else rollouts.fingerprint
    if then is not None:
        found.attempt(lambda: check_resumable(_with_base(run), then, data))


def _with_base(run: Assembly) -> Assembly:
    """With the digest of the model that it starts from."""
    start = run.config.start
    return run if start is None else replace(run, base=digest_of(model_id(start)))


def try_layout(found: Findings, config: RunConfig, objective: Objective, layout: Layout) -> None:
    """Whether models, batches and the optimizer divide over the ranks as the settings say."""
    for owned in objective.models().values():
        found.attempt(partial(check_layout, owned, config.parallel))
    if found.ranks > 1:
        found.attempt(lambda: check_divisible(objective, config.parallel))
    found.attempt(lambda: check_in_backward(config, found.ranks))
    if found.ranks > 1 and config.parallel.pipeline > 1:
        _try_pipeline(found, config, objective, layout)


def _try_pipeline(found: Findings, config: RunConfig, objective: Objective, layout: Layout) -> None:
    """What a run checks of a pipeline, and of the micro-batches of each of its steps."""
    train, parallel = config.train, config.parallel
    holders = layout.data * parallel.context
    found.attempt(partial(check_pipeline, objective, parallel, holders, train.compile))
    for rows in train.batch_sizes.distinct:
        count = -(-rows // (layout.data * train.at_once))
        found.attempt(partial(check_micro_batches, parallel, count))
