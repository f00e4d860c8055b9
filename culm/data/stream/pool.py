"""The processes of a stream as the main process sees them: what they send, and whether they live.

Back-pressure: a thread for each process puts what it sends into one queue of limited size. If that
is full the thread stops to receive, the pipe fills, and the process waits.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import threading
import time
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from culm.config import SettingError, UnavailableError
from culm.data.stream.process import Failed, Mark, Reading, encode, read
from culm.tokenizer.tokenizer import Tokenizer

GRACE = 2.0  # seconds in which the exit code of a process that ended is known


class Gone:
    """A process sends nothing more."""


class StreamPool:
    """Reader and workers from a mark on, until `close` or the end of this process."""

    def __init__(
        self, reading: Reading, tokenizer: Tokenizer, mark: Mark, workers: int, prefetch: int
    ) -> None:
        context = _context()
        self._queue: queue.Queue[Any] = queue.Queue(workers * prefetch)
        self._processes: dict[str, BaseProcess] = {}
        senders, given, inner = [], list[Connection](), list[Connection]()
        for number in range(workers):
            jobs, sender = context.Pipe(duplex=False)
            senders.append(sender)
            found, out = context.Pipe(duplex=False)
            given.append(found)
            inner += [jobs, sender, out]
            self._start(
                context.Process(target=encode, args=(reading.format, tokenizer, jobs, out)),
                f"worker {number}",
            )
        found, out = context.Pipe(duplex=False)
        self._start(context.Process(target=read, args=(reading, mark, senders, out)), "the reader")
        for connection in [*inner, out]:  # or the end of a process would never be seen
            connection.close()
        threads = [
            threading.Thread(target=_receive, args=(connection, self._queue), daemon=True)
            for connection in [*given, found]
        ]
        for thread in threads:
            thread.start()
        self.close = weakref.finalize(
            self, _end, list(self._processes.values()), threads, self._queue
        )

    def _start(self, process: BaseProcess, name: str) -> None:
        process.daemon = True
        process.start()
        self._processes[name] = process

    @property
    def pids(self) -> dict[str, int | None]:
        """Of each process, by its name."""
        return {name: process.pid for name, process in self._processes.items()}

    def get(self) -> Any:
        """The next of what the processes sent.

        Raises:
            SettingError: one of them failed, or was killed.
        """
        found = self._queue.get()
        if isinstance(found, Failed):
            self.close()
            raise SettingError(found.message)
        if isinstance(found, Gone):
            message = self._failure()
            self.close()
            raise UnavailableError(message)
        return found

    def _failure(self) -> str:
        """Which process ended, and how."""
        until = time.monotonic() + GRACE
        while time.monotonic() < until:
            codes = {name: process.exitcode for name, process in self._processes.items()}
            ended = {name: code for name, code in codes.items() if code}
            if ended:
                name, code = next(iter(ended.items()))
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                return (
                    f"data.stream: {name} (process {self._processes[name].pid}) ended with {how}; "
                    "memory may be short (set fewer data.stream.workers), or a script lacks the "
                    'line if __name__ == "__main__":; the same command resumes the run'
                )
            time.sleep(0.02)
        return "data.stream: a process ended without a reason; the same command resumes the run"


def _context() -> Any:
    """How processes start. They are not forked, since threads of this process may hold locks; where
    the system can, from a process that has imported what they need.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([encode.__module__])
    return context


def _receive(connection: Connection, into: queue.Queue[Any]) -> None:
    try:
        while True:
            into.put(connection.recv())
    except (EOFError, OSError):
        into.put(Gone())


def _end(
    processes: Sequence[BaseProcess], threads: Sequence[threading.Thread], into: queue.Queue[Any]
) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join(GRACE)
    until = time.monotonic() + GRACE
    while time.monotonic() < until and any(thread.is_alive() for thread in threads):
        # One may wait for room in the queue.
        with contextlib.suppress(queue.Empty):
            into.get(timeout=0.01)
