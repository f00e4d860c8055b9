"""Checkpoints: everything that a run needs to continue as if it had never stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as distributed
from torch import Tensor

from culm import files
from culm.atomic import atomic
from culm.config import SettingError
from culm.exits import RESUMES
from culm.log import say
from culm.model.rule_updated import rule_updated
from culm.objective.objective import Trained
from culm.optim.rule import RuleOptimizer, check_layouts
from culm.parallel.launch import PATIENCE
from culm.parallel.ranks import RankFailed, Ranks
from culm.parallel.sharded import is_sharded
from culm.train.checkpoint.background import Background
from culm.train.checkpoint.folder import (
    Found,
    Progress,
    Refused,
    candidates,
    damage_of,
    path_of,
    prune,
    refuse_all,
    set_aside,
    steps_in,
    write_state,
)
from culm.train.checkpoint.settings import CheckpointConfig
from culm.train.checkpoint.sharded import Sharded
from culm.train.checkpoint.tensors import (
    CheckpointError,
    NotWritten,
    moving_parameters,
    names_differ,
)
from culm.train.checkpoint.whole import Whole
from culm.train.guard import first_unusable

Done = Callable[[Path], None]
Accept = Callable[[Progress], None]


class Store(Protocol):
    """Where the checkpoints of a run are kept, in some form. Every rank calls each method."""

    def save(self, progress: Progress, state: Mapping[str, Tensor], done: Done) -> None:
        """Start to write a checkpoint, after the one before is on the disk.

        done: gets its folder on every rank once it is on the disk, in a call of this store.
        """
        ...

    def poll(self) -> bool:
        """Whether nothing is being written; calls `done` of what has been, after each step.

        Raises:
            NotWritten: it could not be written.
        """
        ...

    def wait(self) -> None:
        """The same, when all that was saved is on the disk."""
        ...

    def load(self, accept: Accept) -> tuple[Progress, dict[str, Tensor]] | None:
        """Restore the newest good checkpoint in place; None if there is none.

        accept: called before anything is restored; raises where the run must not resume from it.
        """
        ...


class Form(Protocol):
    """How the tensors of a checkpoint are written; every rank calls each method."""

    name: str

    def capture(self, state: Mapping[str, Tensor], ranks: Ranks, copy: bool) -> Any:
        """What this rank will write. copy: the run changes it meanwhile."""
        ...

    def write(self, captured: Any, folder: Path, ranks: Ranks) -> list[str]:
        """Write it into a folder that all ranks share; the names of this rank's files."""
        ...

    def read(self, path: Path, where: str, ranks: Ranks) -> dict[str, Tensor]:
        """Restore a run in place; the state of its batches. where: for messages."""
        ...


class CheckpointStore:
    """Checkpoints on a disk that all ranks share.

    state: what the batches need to continue exactly (`culm.train.trainer.Batches`).
    """

    def __init__(
        self,
        folder: Path,
        objective: Trained,
        optimizer: RuleOptimizer,
        settings: CheckpointConfig = CheckpointConfig(),
        ranks: Ranks = Ranks(),
    ) -> None:
        check_layouts(optimizer, is_sharded(objective))
        self.folder, self.settings, self.ranks = folder, settings, ranks
        self.objective, self.optimizer = objective, optimizer
        forms: list[Form] = [Whole(objective, optimizer), Sharded(objective, optimizer)]
        self.forms = {form.name: form for form in forms}
        self.form = self.forms[self._choose()]
        self._writing: tuple[Background, Callable[[], None]] | None = None
        self._writers = ranks
        if settings.asynchronous and ranks.patient is not None:
            # Of the thread alone: calls of two threads in one group could meet in any order.
            group = distributed.new_group(backend="gloo", timeout=PATIENCE)
            self._writers = replace(ranks, patient=group)

    def save(self, progress: Progress, state: Mapping[str, Tensor], done: Done) -> None:
        """Write `checkpoints/step-N`, then remove those that do not stay."""
        self.wait()
        self._refuse_unusable(progress.step)
        copy = self.settings.asynchronous
        captured = self.form.capture(state, self.ranks, copy)
        work = partial(self._write, captured, progress, self._writers)
        finished = partial(done, path_of(self.folder, progress.step))
        if not copy:
            work()
            finished()
            return
        self._writing = Background(work), finished

    def poll(self) -> bool:
        if self._writing is not None and self._writing[0].ended(self.ranks):
            self.wait()
        return self._writing is None

    def wait(self) -> None:
        if self._writing is not None:
            (background, finished), self._writing = self._writing, None
            background.result()
            finished()

    def load(
        self, accept: Accept = lambda progress: None
    ) -> tuple[Progress, dict[str, Tensor]] | None:
        """Restore the newest good checkpoint in place, and give what it holds for the batches.

        Newer ones that are damaged are renamed.

        Raises:
            CheckpointError: all are damaged, or it is not finite, or belongs to a model of another
                shape.
        """
        found = self._newest_good()
        if found is None:
            return None
        accept(found.progress)
        where = f"{found.path}; give this run another folder=..., or delete it"
        return found.progress, self.forms[found.form].read(found.path, where, self.ranks)

    def _choose(self) -> str:
        """The form that is written.

        Raises:
            SettingError: whole tensors are asked for, and no rank has all of them.
        """
        form, differ = self.settings.form, names_differ(self.objective, self.ranks)
        if form == "whole" and differ:
            raise SettingError(
                "train.checkpoint.form: ranks hold different weights, which are not gathered; use "
                "sharded"
            )
        if form != "auto":
            return form
        return Sharded.name if differ or is_sharded(self.objective) else Whole.name

    def _newest_good(self) -> Found | None:
        """The same on all ranks, each of which reads a share of the files."""
        refused = list[Refused]()
        for one in self.ranks.attempt(lambda: list(candidates(self.folder)))[0]:
            if isinstance(one, Found):
                if (reason := self._damage(one)) is None:
                    self.ranks.attempt(partial(self._set_aside, refused, one.path))
                    return one
                one = Refused(one.path, reason)
            refused.append(one)
        refuse_all(refused)
        return None

    def _damage(self, found: Found) -> str | None:
        ranks = self.ranks
        reasons = ranks.attempt(lambda: damage_of(found, ranks.process, ranks.processes))
        return next((reason for reason in reasons if reason is not None), None)

    def _set_aside(self, refused: list[Refused], good: Path) -> None:
        for one in refused if self.ranks.writer else ():
            place = set_aside(one)
            say(
                f"{one.path}: damaged ({one.reason}), so the run resumes from {good.name}; the "
                f"damaged one is now {place.name}."
            )

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

    def _write(self, captured: Any, progress: Progress, ranks: Ranks) -> None:
        """All ranks write, or the checkpoint is not there.

        Raises:
            NotWritten: on all ranks if one of them cannot write.
        """
        path = path_of(self.folder, progress.step)
        try:
            with ExitStack() as stack:
                fresh, *_ = ranks.attempt(lambda: _begin(path, stack, ranks))

                def write() -> dict[str, str]:
                    names = self.form.write(captured, fresh, ranks)
                    return {name: files.sha256(fresh / name) for name in names}

                parts = ranks.attempt(write)
                digests = {name: digest for part in parts for name, digest in part.items()}

                def commit() -> None:
                    if ranks.writer:
                        write_state(fresh, progress, self.form.name, digests)
                        stack.close()
                        prune(self.folder, self.settings.keep, self.settings.keep_every_steps)

                ranks.attempt(commit)
        except (OSError, RankFailed) as error:
            raise NotWritten(f"{error}; make room there; then {RESUMES}") from error


def _begin(path: Path, stack: ExitStack, ranks: Ranks) -> Path:
    """The temporary folder of a checkpoint, which the writer makes."""
    if not ranks.writer:
        return path
    fresh = stack.enter_context(atomic(path))
    fresh.mkdir()
    return fresh
