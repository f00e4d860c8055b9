"""A run that learns points for the nodes of a graph, by the one loop.

    runs/x/run.yaml, metrics.jsonl, eval.jsonl, status.json, checkpoints/   as in every run
    runs/x/model/          the points (`culm.graph.folder`)
    runs/x/results.json    what was measured after the last step

Started again with the same folder, it resumes where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from culm import log
from culm.atomic import atomic
from culm.config import SettingError
from culm.device import choose_device
from culm.exits import AGAIN
from culm.files import read_lines, refuse_nonempty, write_json
from culm.graph.batches import EdgeBatches
from culm.graph.edges import Graph
from culm.graph.folder import SETTINGS, NamedPoints, save_points
from culm.graph.objective import EdgeObjective
from culm.graph.settings import GraphRun
from culm.optim.rule import RuleOptimizer
from culm.parallel.launch import process_group
from culm.parallel.parallelize import parallelize
from culm.parallel.ranks import Ranks
from culm.train.checkpoint.folder import Progress
from culm.train.checkpoint.listener import Checkpoints
from culm.train.checkpoint.store import CheckpointStore
from culm.train.events import Ended, Listeners, Measured
from culm.train.guard import Interruption, locked
from culm.train.listeners import (
    EvaluationFile,
    Evaluations,
    Forgiving,
    MetricsFile,
    ProgressBar,
)
from culm.train.memory import peak_bytes
from culm.train.run_folder import write_settings
from culm.train.status import Status
from culm.train.trackers.tracker import TrackerConfig
from culm.train.trainer import Trainer
from culm.train.update import Update


@dataclass(frozen=True)
class Outcome:
    """What a run came to. finished: it was not interrupted. exit_code: of its process."""

    folder: Path
    finished: bool
    results: Mapping[str, Any]
    exit_code: int = 0


@dataclass(frozen=True)
class Parts:
    """Of one run on one rank."""

    config: GraphRun
    graph: Graph
    objective: EdgeObjective
    optimizer: RuleOptimizer
    ranks: Ranks

    @property
    def folder(self) -> Path:
        return Path(self.config.folder)

    def measure(self) -> dict[str, Any]:
        """Every rank measures the same points."""
        with self.optimizer.averaged():
            return self.config.eval.measure(self.objective.model, self.graph)


def train_graph(config: GraphRun) -> Outcome:
    """Train to the end, or until interrupted; started again, continue where it stopped.

    Raises:
        SettingError: the file of edges, or the folder, cannot be used.
    """
    device, folder = choose_device(config.device), Path(config.folder)
    graph = config.data.read()
    for remark in (f"{len(graph.names):,} nodes, {len(graph.edges):,} edges.", *graph.remarks):
        log.say(remark)
    objective = EdgeObjective(config.model.build(len(graph.names), config.seed)).to(device)
    optimizer = config.train.optimizer.build(objective)
    with process_group(device) as ranks, _owned(folder, ranks):
        if ranks.writer:
            write_settings(folder, config)
            refuse_nonempty(folder / "model", SETTINGS)
        ranks.wait()
        status = Status(folder, config.train.steps, ranks.writer)
        with status.kept():
            return _train(Parts(config, graph, objective, optimizer, ranks), status)


@contextmanager
def _owned(folder: Path, ranks: Ranks) -> Iterator[None]:
    if not ranks.writer:
        yield
        return
    with locked(folder):
        yield


def _train(run: Parts, status: Status) -> Outcome:
    """Resume, listen, fit, finish."""
    train, seed, folder = run.config.train, run.config.seed, run.folder
    batches = EdgeBatches(run.graph, train.batch_size, train.negatives, seed, run.ranks)
    parallel = parallelize(run.objective, run.ranks)
    store = CheckpointStore(folder, run.objective, run.optimizer, train.checkpoint, run.ranks)
    start = _resume(run, store, batches)
    status.step = start.step
    with closing(Listeners()) as listeners, listeners.failure():
        interruption = Interruption(status.leave)
        update = Update(parallel, run.optimizer, clip=train.clip, seed=seed)
        trainer = Trainer(update, train.schedule, listener=listeners, stop=interruption)
        listeners.add(status)
        _add_listeners(run, listeners, store, batches, start)
        if start.step == 0:
            listeners(Measured(0, run.measure()))
        with log.progress(folder.name, train.steps, "steps") as bar, interruption.watching():
            bar.advance(start.step)
            listeners.add(ProgressBar(bar, start.step))
            step = trainer.fit(batches, train.steps, start.step, start.tokens)
        finished = step == train.steps
        results = _finish(run, step, listeners) if finished else {}
        listeners(Ended(step, finished, results, folder / "model" if finished else None))
    if not finished:
        log.say(f"Stopped after step {step}; the same command resumes it.")
    return Outcome(folder, finished, results, 0 if finished else AGAIN)


def _resume(run: Parts, store: CheckpointStore, batches: EdgeBatches) -> Progress:
    """Restore the newest checkpoint, or start at step 0.

    Raises:
        SettingError: the edges are not those that it was trained with.
    """
    now = Progress(0, 0, batches.fingerprint, settings=run.config.model_dump(mode="json"))
    found = store.load(lambda then: accept(run.folder, then, batches))
    if found is None:
        return now
    log.say(f"Resuming {run.folder} after step {found[0].step}.")
    return replace(now, step=found[0].step, tokens=found[0].tokens)


def accept(folder: Path, then: Progress, batches: EdgeBatches) -> None:
    """Compare the edges of a run with those of its checkpoint.

    Raises:
        SettingError: they are others.
    """
    if then.data != batches.fingerprint:
        raise SettingError(
            f"{folder}: its checkpoint was trained on other edges, or in another order (data.*, "
            "seed, train.batch_size or train.negatives changed); give a new run another folder=..."
        )


def _add_listeners(
    run: Parts, listeners: Listeners, store: CheckpointStore, batches: EdgeBatches, start: Progress
) -> None:
    """Metrics are written before the checkpoint of a step is, and evaluations come after it."""
    config, kept = run.config, run.config.train.checkpoint

    def save(step: int, tokens: int, done: Callable[[Path], None]) -> None:
        store.save(replace(start, step=step, tokens=tokens), batches.state(step), done)

    if run.ranks.writer:
        listeners.add(MetricsFile(run.folder / "metrics.jsonl", start.step))
        listeners.add(EvaluationFile(run.folder / "eval.jsonl"))
        trackers: tuple[TrackerConfig, ...] = config.train.trackers
        for tracker in trackers:
            opened = tracker.open(run.folder, config.model_dump(mode="json"), start.step)
            listeners.add(Forgiving(opened, tracker.kind))
    checkpoints = Checkpoints(
        save, store.poll, store.wait, kept.every_steps, listeners, kept.failures
    )
    listeners.add(checkpoints)
    every = config.eval.every_steps
    listeners.add(Evaluations(run.measure, every, listeners, checkpoints.settle))


def _finish(run: Parts, step: int, listeners: Listeners) -> dict[str, Any]:
    """Measure, and write the points and the results."""
    measured = run.measure()
    listeners(Measured(step, measured))
    seconds = sum(line["seconds"] for line in read_lines(run.folder / "metrics.jsonl"))
    results = {"step": step, **measured, "seconds": round(seconds, 3), "peak_bytes": peak_bytes()}
    if run.ranks.writer:
        with run.optimizer.averaged():
            save_points(NamedPoints(run.objective.model, run.graph.names), run.folder / "model")
        with atomic(run.folder / "results.json") as fresh:
            write_json(fresh, results)
    run.ranks.wait()
    return results
