"""The listener that saves a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from culm.endpoint import ServiceFailed
from culm.log import say
from culm.train.checkpoint.tensors import NotWritten
from culm.train.events import Event, Failed, NotSaved, Saved, Stepped
from culm.train.listeners import is_due


class Checkpoints:
    """Saves every `every_steps` steps, after the last one, when the run is asked to stop, and when
    a service fails that it needs, such as the one that samples: all ranks then end together.

    Comes after the listeners that write files: what they wrote of a step must be on the disk
    before its checkpoint is. save(step, tokens, done): starts to write a checkpoint, after the one
    before is on the disk; `done` gets its folder. poll: whether nothing is being written; raises
    what went wrong. wait: the same, when all checkpoints are on the disk. failures: how many in a
    row may fail to be written, except the last one.
    """

    def __init__(
        self,
        save: Callable[[int, int, Callable[[Path], None]], None],
        poll: Callable[[], bool],
        wait: Callable[[], None],
        every_steps: int | None,
        announce: Callable[[Event], None],
        failures: int = 0,
    ) -> None:
        self._save, self._poll, self._wait = save, poll, wait
        self._every, self._announce, self._failures = every_steps, announce, failures
        self._unsaved: Stepped | None = None
        self._error: BaseException | None = None
        self._step = self._failed = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Failed):
            self._error = event.error
            if self._unsaved is not None and isinstance(event.error, ServiceFailed):
                self._write(self._unsaved)
                self._wait()
        elif isinstance(event, Stepped):
            self._unsaved, self._step = event, event.step
            if event.last or event.stopped:
                self.settle()
                self._write(event)
                self._wait()
            elif self._tolerate(self._poll) and is_due(event.step, self._every):
                self._tolerate(lambda: self._write(event))
            elif is_due(event.step, self._every):
                say(
                    f"Step {event.step}: its checkpoint is left out, since the one before is still "
                    "being written."
                )

    def settle(self) -> None:
        """Return when what was saved is on the disk, or could not be written."""
        self._tolerate(self._wait)

    def _tolerate(self, work: Callable[[], bool | None]) -> bool | None:
        """Read or write a checkpoint; True if that failed and the run may continue."""
        try:
            return work()
        except NotWritten as error:
            self._failed += 1
            if self._failed > self._failures:
                raise
            say(f"Step {self._step}: a checkpoint was not written, and the run continues: {error}")
            self._announce(NotSaved(self._step, str(error)))
            return True

    def _write(self, event: Stepped) -> None:
        step, self._unsaved = event.step, None
        self._save(step, event.tokens, lambda path: self._saved(step, path))

    def _saved(self, step: int, path: Path) -> None:
        self._failed = 0
        self._announce(Saved(step, path))

    def close(self) -> None:
        if self._error is None:
            self._wait()
        elif isinstance(self._error, Exception):  # a second Ctrl-C ends at once
            try:
                self._wait()
            except Exception as error:  # that which ended the run is raised
                say(f"The last checkpoint could not be written: {error}")
