"""Checkpoints: everything that a run needs to continue as if it had never stopped.

    checkpoints/step-40/state.safetensors   trained parameters, optimizer states, buffers that a
                                            rule updates, and the state of the batches
    checkpoints/step-40/state.json          step, tokens, settings, digests of the data and of the
                                            models that the run reads, SHA-256 of all

A checkpoint is complete or not there. Its tensors are whole, whatever the layout: a run may resume
on another number of ranks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file
from torch import Tensor

from culm import files
from culm.atomic import atomic, discard
from culm.model.rule_updated import rule_updated
from culm.objective.objective import Objective
from culm.optim.rule import RuleOptimizer, check_layouts
from culm.parallel.ranks import Ranks
from culm.parallel.sharded import is_sharded
from culm.safetensors import write_safetensors
from culm.train.guard import first_unusable
from culm.train.tensors import CheckpointError, collect, moving_parameters, restore

WEIGHTS, STATE = "state.safetensors", "state.json"
BATCHES = "batches."


@dataclass(frozen=True)
class Progress:
    """How far a run is, and what that depends on.

    data: fingerprint of the dataset that its steps index. reads: digests of the models and of the
    tokenizer that the run reads, each by the setting that names it. settings: of the run.
    """

    step: int
    tokens: int
    data: str
    reads: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def steps_in(folder: Path) -> list[int]:
    """Steps of the finished checkpoints in a run folder, in order."""
    found = (folder / "checkpoints").glob(f"step-*/{STATE}")
    numbers = (path.parent.name.removeprefix("step-") for path in found)
    return sorted(int(number) for number in numbers if number.isdecimal())


Done = Callable[[Path], None]
Accept = Callable[[Progress], None]


class Store(Protocol):
    """Where the checkpoints of a run are kept, in some form."""

    def save(self, progress: Progress, state: Mapping[str, Tensor], done: Done) -> None:
        """Start to write a checkpoint; `done` gets its folder once it is on the disk.

        Every rank calls it, and `done` is called on every rank.
        """
        ...

    def load(self, accept: Accept) -> tuple[Progress, dict[str, Tensor]] | None:
        """Restore the newest checkpoint in place; None if there is none. Every rank calls it.

        accept: called before anything is restored; raises where the run must not resume from it.
        """
        ...

    def wait(self) -> None:
        """Return when all that was saved is on the disk."""
        ...


class WholeStore:
    """Checkpoints of whole tensors, gathered and written by one rank before `save` returns.

    state: what the batches need to continue exactly (`culm.train.trainer.Batches`).
    """

    def __init__(
        self,
        folder: Path,
        objective: Objective,
        optimizer: RuleOptimizer,
        keep: int = 2,
        ranks: Ranks = Ranks(),
    ) -> None:
        check_layouts(optimizer, is_sharded(objective))
        self.folder, self.keep, self.ranks = folder, keep, ranks
        self.objective, self.optimizer = objective, optimizer

    def save(self, progress: Progress, state: Mapping[str, Tensor], done: Done) -> None:
        """Write `checkpoints/step-N`, then remove all but the newest `keep`."""
        self._refuse_unusable(progress.step)
        # Every rank takes part in gathering.
        tensors = collect(self.objective, self.optimizer, self.ranks)
        path = self.folder / "checkpoints" / f"step-{progress.step}"
        if self.ranks.writer:
            tensors |= {f"{BATCHES}{name}": value.contiguous() for name, value in state.items()}
            self._write(path, tensors, progress)
            for step in steps_in(self.folder)[: -self.keep]:
                discard(path.parent / f"step-{step}")
        self.ranks.wait()
        done(path)

    def load(
        self, accept: Accept = lambda progress: None
    ) -> tuple[Progress, dict[str, Tensor]] | None:
        """Restore the newest checkpoint in place, and give what it holds for the batches.

        Raises:
            CheckpointError: it is damaged, not finite, or belongs to a model of another shape.
        """
        progress = verify(self.folder)
        if progress is None:
            return None
        accept(progress)
        path, remedy = _newest(self.folder)
        tensors = load_file(path / WEIGHTS)
        names = [name for name in tensors if name.startswith(BATCHES)]
        state = {name.removeprefix(BATCHES): tensors.pop(name).clone() for name in names}
        if (broken := first_unusable(tensors)) is not None:
            raise CheckpointError(f"{path}: {broken} is not finite; {remedy}")
        where = f"{path}; give this run another folder=..., or {remedy}"
        restore(self.objective, self.optimizer, tensors, where, self.ranks)
        return progress, state

    def wait(self) -> None:
        """`save` has written everything when it returns."""

    def _refuse_unusable(self, step: int) -> None:
        """Nothing is written of weights that became useless; all ranks agree on it."""
        named = moving_parameters(self.objective)
        states = {
            f"the optimizer's {key} of {name}": value
            for name, parameter in named.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        found = self.ranks.everyone(
            first_unusable({**named, **states, **rule_updated(self.objective)})
        )
        broken = next((name for name in found if name is not None), None)
        if broken is not None:
            last = max(steps_in(self.folder), default=0)
            raise CheckpointError(
                f"step {step}: {broken} is not finite, or too large to compute with, after the "
                f"update; lower train.optimizer.rate and start the same command again: it resumes "
                f"from step {last}"
            )

    def _write(self, path: Path, tensors: dict[str, Tensor], progress: Progress) -> None:
        try:
            with atomic(path) as fresh:
                fresh.mkdir()
                write_safetensors(fresh / WEIGHTS, tensors)
                state = asdict(progress)
                files.write_json(fresh / STATE, {**state, "sha256": _seal(fresh / WEIGHTS, state)})
        except OSError as error:
            raise CheckpointError(
                f"{error}; make room there and start the same command again: "
                "it resumes from the last checkpoint"
            ) from error


def verify(folder: Path) -> Progress | None:
    """The progress of the newest checkpoint, after its checksum was verified.

    Raises:
        CheckpointError: it is damaged.
    """
    if not steps_in(folder):
        return None
    path, remedy = _newest(folder)
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        checksum = state.pop("sha256")
        progress = Progress(**state)
        if _seal(path / WEIGHTS, state) != checksum:
            raise ValueError("its SHA-256 differs")
    except PermissionError as error:  # no damage, and no reason to delete it
        raise CheckpointError(
            f"{error.filename}: may not be read; give this user access"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        readable = isinstance(error, OSError | ValueError)
        reason = str(error) if readable else f"{STATE} does not describe a checkpoint"
        raise CheckpointError(f"{path}: damaged ({reason}); {remedy}") from error
    return progress


def settings_in(folder: Path) -> dict[str, Any]:
    """The settings in the newest checkpoint, as plain values; none where it has none."""
    if not steps_in(folder):
        return {}
    path, _ = _newest(folder)
    try:
        settings = json.loads((path / STATE).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _newest(folder: Path) -> tuple[Path, str]:
    """The newest checkpoint, and the remedy if it cannot be used."""
    *earlier, last = steps_in(folder)
    path = folder / "checkpoints" / f"step-{last}"
    before = f"step {earlier[-1]}" if earlier else "the beginning"
    return path, f"delete {path} to resume from {before}"


def _seal(weights: Path, state: dict) -> str:
    text = files.sha256(weights) + json.dumps(state, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
