"""The listeners of a run: files, trackers, checkpoints and evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from culm.convert import native
from culm.files import read_lines
from culm.optim.rule import RuleOptimizer
from culm.run.assemble import Assembly
from culm.run.policy_export import policy_of
from culm.train.checkpoint.folder import Progress
from culm.train.checkpoint.listener import Checkpoints
from culm.train.checkpoint.store import Store
from culm.train.events import Listeners
from culm.train.idle import IdleWatch
from culm.train.listeners import (
    EvaluationFile,
    Evaluations,
    Forgiving,
    MetricsFile,
    is_due,
)
from culm.train.profile import Profile
from culm.train.push import Push
from culm.train.trackers.tracker import TrackerConfig
from culm.train.trainer import Batches


def add_listeners(
    run: Assembly,
    listeners: Listeners,
    evaluate: Callable[[], Mapping[str, Any]],
    store: Store,
    batches: Batches,
    start: Progress,
    optimizer: RuleOptimizer,
) -> None:
    """Add the listeners in their order: metrics are written before the checkpoint of a step is, and
    evaluations come after it.
    """
    config, folder = run.config, run.folder

    def save(step: int, tokens: int, done: Callable[[Path], None]) -> None:
        store.save(replace(start, step=step, tokens=tokens), batches.state(step), done)

    if run.ranks.writer:
        listeners.add(MetricsFile(folder / "metrics.jsonl", start.step))
        listeners.add(EvaluationFile(folder / "eval.jsonl"))
        listeners.add(IdleWatch())
        settings = config.model_dump(mode="json")
        trackers: tuple[TrackerConfig, ...] = config.train.trackers
        for tracker in trackers:
            opened = tracker.open(folder, settings, start.step)
            listeners.add(Forgiving(opened, tracker.kind))
    if config.train.profile is not None:
        place, rank = folder / "profile", run.ranks.process
        listeners.add(Profile(config.train.profile, place, rank, start.step))
    if config.train.push is not None:

        def write(out: Path) -> None:
            with optimizer.averaged():
                model = policy_of(config, folder, run.model, run.ranks)
                if model is not None:
                    native.save(model, run.tokenizer, out)

        listeners.add(Push(config.train.push, write, run.ranks))
    kept = config.train.checkpoint
    checkpoints = Checkpoints(
        save, store.poll, store.wait, kept.every_steps, listeners, kept.failures
    )
    listeners.add(checkpoints)
    every_steps = config.eval.every_steps
    listeners.add(Evaluations(evaluate, every_steps, listeners, checkpoints.settle))


def is_unmeasured(run: Assembly, step: int) -> bool:
    """Whether the step from which a run continues was to be evaluated, and the run was stopped
    before; all ranks agree.
    """
    if step == 0:
        return True
    if step == run.config.train.steps or not is_due(step, run.config.eval.every_steps):
        return False
    lines = read_lines(run.folder / "eval.jsonl")
    return run.ranks.gather(all(line["step"] != step for line in lines))[0]
