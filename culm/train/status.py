"""`status.json`: what became of a run, for people and programs that did not start it.

    {"state": "running", "reason": null, "step": 40, "steps": 1000, "host": "node7", "pid": 4711,
     "updated": "2026-11-29T07:00:00+00:00"}

state: running, finished, interrupted (the same command resumes it) or failed. A process that is
killed leaves "running": its pid, on its host, is gone then.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from culm.atomic import InUseError, atomic
from culm.config import SettingError
from culm.exits import sentence_of
from culm.files import read_json, write_json
from culm.train.events import Ended, Event, Saved, Stepped
from culm.train.guard import STATUS
from culm.train.listeners import Silent

SECONDS = 10.0  # between two writes, if nothing but steps happens


class Status(Silent):
    """Keeps the file up to date; a disk that is full costs the file and not the run."""

    def __init__(self, folder: Path, steps: int, writer: bool = True) -> None:
        self.path, self.steps, self.step = folder / STATUS, steps, 0
        self.writer = writer
        self._written = time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self.step = event.step
            if time.monotonic() - self._written > SECONDS:
                self.write("running")
        elif isinstance(event, Saved):
            self.write("running")
        elif isinstance(event, Ended):
            self.step = event.step
            self.write("finished" if event.finished else "interrupted")

    def write(self, state: str, reason: str | None = None) -> None:
        """Replace the file, on the rank that writes."""
        if not self.writer:
            return
        self._written = time.monotonic()
        values = {
            "state": state, "reason": reason, "step": self.step, "steps": self.steps,
            "host": socket.gethostname(), "pid": os.getpid(),
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        # In use: by the main thread, where a second signal ends the process.
        with suppress(OSError, InUseError), atomic(self.path) as fresh:
            write_json(fresh, values)

    def leave(self) -> None:
        """The process ends now."""
        self.write("interrupted", "stopped at once, without a checkpoint of this step")

    @contextmanager
    def kept(self) -> Iterator[Status]:
        """Say how what is done within ends, if an error ends it."""
        self.write("running")
        try:
            yield self
        except (KeyboardInterrupt, SystemExit):
            self.write("interrupted", "stopped at once, without a checkpoint of this step")
            raise
        except BaseException as error:
            self.write("failed", sentence_of(error))
            raise


def read_status(folder: Path) -> dict[str, Any]:
    """What became of the run in a folder: the file, with `killed` for a process that is gone.

    Of a process on another machine nothing is known but the time of its last news. Without a
    readable file the state is `unknown`.
    """
    try:
        found = read_json(folder / STATUS)
    except (SettingError, OSError):
        return {"state": "unknown"}
    if found.get("state") == "running" and _is_gone(found):
        reason = "its process ended without a word; the same command resumes the run"
        return {**found, "state": "killed", "reason": reason}
    return found


def _is_gone(status: Mapping[str, Any]) -> bool:
    pid = status.get("pid")
    if status.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # somebody else's process
        return False
    return False
