"""The engine in a thread of its own, which reads, generates and reports."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.serve.job import Embedding, Found, Job, Scoring
from culm.serve.refusal import NotFinite, Refusal

log = logging.getLogger("culm.serve")


class Owner(Protocol):
    """Who gets the reports of the thread, in the event loop."""

    def deliver(self, events: Sequence[tuple[Job, int, Found]]) -> None: ...

    def invalid(self, job: Job, error: Refusal) -> None: ...

    def failed(self) -> None: ...

    def died(self) -> None: ...


@dataclass
class Reading:
    """Ids that are being read, step by step."""

    job: Job
    index: int
    asked: Scoring | Embedding
    steps: Iterator[Any]
    done: list[Any] = field(default_factory=list)


class EngineThread:
    """Steps an engine while there is work.

    Other threads call only `start`, `send`, `running` and `close`; `add` and `abort` are for work.
    readings: ids that are being read now.
    """

    def __init__(self, engine: Engine, owner: Owner) -> None:
        self.engine, self._owner = engine, owner
        self._inbox: list[Callable[[], None]] = []  # guarded by _changed
        self._changed = threading.Condition()
        self._closed = False
        self._owners: dict[int, Job] = {}  # engine's number -> job
        self.readings: deque[Reading] = deque()
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread, which reports to this loop."""
        self._report = loop.call_soon_threadsafe
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def send(self, work: Callable[[], None]) -> None:
        """Run work in the thread, before its next step."""
        with self._changed:
            self._inbox.append(work)
            self._changed.notify()

    def close(self) -> None:
        """End the thread after what was sent, and wait for it."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    # -- in the thread ------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self._run()
        except BaseException:
            log.critical("the engine has stopped; the server must be restarted", exc_info=True)
            self._report(self._owner.died)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._inbox or self.readings or self.engine.busy or self._closed):
                    self._changed.wait()
                if self._closed and not self._inbox:  # somebody may wait for work of the inbox
                    return
                inbox, self._inbox = self._inbox, []
            for work in (*inbox, self._read, self._step):
                try:
                    work()
                except Exception:
                    log.exception("the engine failed; its requests end, and it goes on")
                    self._owners.clear()
                    self.readings.clear()
                    self.engine.clear()
                    self._report(self._owner.failed)

    def add(self, job: Job, indices: set[int]) -> None:
        """Start some tasks of a job; called in the thread."""
        for index in sorted(indices):
            task = job.tasks[index]
            if asked := task.reading:
                self.readings.append(Reading(job, index, asked, asked.steps(self.engine)))
            elif task.request:
                self._generate(job, index, task.request)

    def _generate(self, job: Job, index: int, request: Request) -> None:
        number = self.engine.add(request)
        job.numbers[number] = index
        self._owners[number] = job

    def abort(self, job: Job, ended: set[int]) -> None:
        """End some tasks of a job; called in the thread."""
        kept = [r for r in self.readings if r.job is not job or r.index not in ended]
        self.readings = deque(kept)
        for number, index in job.numbers.items():
            if index in ended and number in self._owners:
                del self._owners[number]
                self.engine.abort(number)

    def _read(self) -> None:
        """One step of the first ids to read. They take turns where none of them has a cache."""
        if not self.readings:
            return
        reading = self.readings[0]
        if (part := next(reading.steps, None)) is not None:
            reading.done.append(part)
            if reading.asked.interruptible(part):
                self.readings.rotate(-1)
            return
        self.readings.popleft()
        job, index, asked = reading.job, reading.index, reading.asked
        try:
            found: Found = asked.joined(reading.done)
        except NotFinite as error:
            self._report(self._owner.invalid, job, error)
            return
        if request := job.tasks[index].request:
            self._generate(job, index, request)
        self._report(self._owner.deliver, [(job, index, found)])

    def _step(self) -> None:
        events: list[tuple[Job, int, Found]] = []
        for event in self.engine.step():
            job = self._owners[event.request]
            events.append((job, job.numbers[event.request], event))
            if event.finish:
                del self._owners[event.request]
        if events:
            self._report(self._owner.deliver, events)
