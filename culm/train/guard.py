"""What protects a run: one process a folder, and signals that end it after a whole step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from culm.config import SettingError
from culm.log import say


class FolderInUseError(RuntimeError):
    """Another process is working in the run folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep the folder for this process; the lock ends with the process, however it ends."""
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"{folder}: a file; choose another name for the folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUseError(
            f"{folder}: another process is running here; wait for it, end it, "
            "or give this run another folder=..."
        ) from None
    try:
        yield
    finally:
        lock.release()


class Interruption:
    """Asks for a stop at the first Ctrl-C or SIGTERM; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say("Stopping after this step; press Ctrl-C again to stop at once.")

    @contextmanager
    def watching(self) -> Iterator[Interruption]:
        """Handle signals for the duration, then put the old handlers back."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._ask) for number in numbers]
        try:
            yield self
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
