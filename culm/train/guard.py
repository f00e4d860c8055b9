"""What protects a run: one process a folder, signals that end it after a whole step, and a look at
the numbers before they are written.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from culm.atomic import InUseError
from culm.config import SettingError
from culm.dtensor import local_shard
from culm.exits import STOPPED
from culm.files import read_json, refuse_unwritable
from culm.log import is_first_rank, say_at_once

LOCK, STATUS = ".lock", "status.json"  # in the folder of a run
LARGEST = 1e18  # the square of a larger number overflows fp32: nothing can be computed with it
GRACE = 2.0  # seconds in which a second signal ends the process by an exception
SIGNALS = [s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGHUP")]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep the folder for this process; the lock ends with the process, however it ends."""
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"{folder}: a file; choose another name for the folder")
    refuse_unwritable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InUseError(
            f"{folder}: another process is running here{_owner(folder)}; wait for it, end it, "
            "or give this run another folder=..."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _owner(folder: Path) -> str:
    """Who uses the folder, as its `status.json` says, unless that is of an earlier run."""
    try:
        status = read_json(folder / STATUS)
    except SettingError:
        return ""
    known = status.get("state") == "running"
    return f" (process {status.get('pid')} on {status.get('host')})" if known else ""


class Interruption:
    """Asks for a stop at the first signal; a second one stops at once.

    The main thread may be in a call to C++ that does not return, as when it waits for another rank:
    no handler of Python runs then. So a second thread reads the signals too, and ends the process
    if the second one has not ended it. leave: called just before that.
    """

    def __init__(self, leave: Callable[[], None] = lambda: None) -> None:
        self.asked: signal.Signals | None = None
        self._leave = leave

    def __call__(self) -> bool:
        return self.asked is not None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)
        if is_first_rank():
            say_at_once("Stopping after this step; press Ctrl-C again to stop at once.")

    def _end_at_second(self, signals: socket.socket) -> None:
        count = 0
        while received := signals.recv(1):
            count += received[0] in SIGNALS
            if count == 2 and not self._ended.wait(GRACE):
                try:
                    self._leave()
                finally:
                    os._exit(STOPPED)

    @contextmanager
    def watching(self) -> Iterator[Interruption]:
        """Handle signals for the duration, then put the old handlers back.

        Signals that are ignored, such as SIGHUP under nohup, stay ignored.
        """
        self._ended = threading.Event()
        numbers = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
        reading, writing = socket.socketpair()
        writing.setblocking(False)
        thread = threading.Thread(target=self._end_at_second, args=(reading,), daemon=True)
        thread.start()
        old = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        before = [signal.signal(number, self._ask) for number in numbers]
        try:
            yield self
        finally:
            self._ended.set()
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
            signal.set_wakeup_fd(old)
            writing.close()  # ends the thread
            thread.join()
            reading.close()


@torch.no_grad()
def first_unusable(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a number that is not finite, or too large to compute with.

    Of a sharded tensor, the shard of this rank is inspected.
    """
    for name, tensor in tensors.items():
        own = local_shard(tensor)
        if not own.is_floating_point() or not own.numel():
            continue
        if not float(torch.linalg.vector_norm(own.detach(), float("inf"))) < LARGEST:  # also NaN
            return name
    return None
