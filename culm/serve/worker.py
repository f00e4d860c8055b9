"""The engine in a thread of its own, and the requests that wait for it in the event loop.

event loop          submit, abort  ->   inbox   ->   engine thread
(one per server)  <-  one call per step with all its tokens  <-  step, step, step ...

An error of a step ends the requests of the engine, which goes on with the next ones. Where several
steps in a row fail, the worker is not `healthy`; where the thread has ended, it is not `alive`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from culm.engine.engine import Engine
from culm.engine.request import Event, Request
from culm.serve.job import Embedding, Found, Job, Scoring, WorkerTask
from culm.serve.refusal import (
    EngineFailed,
    EngineStopped,
    InvalidRequest,
    NotFinite,
    Overloaded,
    Refusal,
    ShuttingDown,
)

log = logging.getLogger("culm.serve")
T = TypeVar("T")
FAULTS = 2  # failures without a token between them, after which others should get the requests


@dataclass
class Reading:
    """Ids that are being read, step by step."""

    job: Job
    index: int
    asked: Scoring | Embedding
    steps: Iterator[Any]
    done: list[Any] = field(default_factory=list)


class Worker:
    """waiting: how many requests may queue up in addition to those in the engine's slots.

    capacity: maximum number of requests that wait or run.
    """

    def __init__(self, engine: Engine, waiting: int = 64) -> None:
        self._engine = engine
        self.capacity = engine.slots + waiting
        self._jobs: set[Job] = set()  # of the event loop
        self._works: set[asyncio.Future[Any]] = set()  # of the event loop
        self._reserved = 0  # tasks of clients whose texts become tokens, of the event loop
        self._inbox: list[Callable[[], None]] = []  # for the thread, guarded by _changed
        self._changed = threading.Condition()
        self._closed = False
        self._owners: dict[int, Job] = {}  # of the thread: engine's number -> job
        self._readings: deque[Reading] = deque()  # of the thread
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
        self._faults = 0  # since the last result
        self.draining = False
        self.alive = True

    # -- event loop ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; called in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether no task is open."""
        return not self._jobs

    @property
    def open(self) -> int:
        """Tasks that wait or run."""
        return self._reserved + sum(len(job.open) for job in self._jobs)

    @property
    def healthy(self) -> bool:
        """Whether the engine gives results; requests are taken all the same while it is alive."""
        return self.alive and self._faults < FAULTS

    def check_room(self, count: int) -> None:
        """EngineStopped, ShuttingDown, or Overloaded where `count` more requests are too many."""
        if not self.alive:
            raise EngineStopped()
        if self.draining:
            raise ShuttingDown(retry_seconds=10)
        if self.open + count > self.capacity:
            raise Overloaded()

    @contextmanager
    def reserved(self, count: int) -> Iterator[None]:
        """Keep room for `count` tasks while their texts become tokens, until they are submitted.

        Raises:
            EngineStopped, ShuttingDown, Overloaded: as `check_room`.
        """
        self.check_room(count)
        self._reserved += count
        try:
            yield
        finally:
            self._reserved -= count

    def submit(self, tasks: Sequence[WorkerTask]) -> Job:
        """Start the tasks; if one cannot be served, none is."""
        job = Job(tasks)
        self.check_room(len(job.open))
        for task in tasks:
            try:
                if task.reading:
                    task.reading.check(self._engine)
                if task.request:
                    self._engine.check(task.request)
            except ValueError as error:
                raise InvalidRequest(str(error)) from None
        if job.open:
            self._jobs.add(job)
            self._send(lambda: self._add(job, job.open.copy()))
        return job

    def abort(self, job: Job, index: int | None = None) -> None:
        """End one of a job's tasks, or all; those that have ended stay as they are."""
        ended = job.open & {index} if index is not None else set(job.open)
        job.open -= ended
        if ended:
            self._send(lambda: self._abort(job, ended))
        if not job.open:
            self._jobs.discard(job)

    def fail(self, error: Refusal) -> None:
        """End all tasks; whoever waits gets the error."""
        for job in list(self._jobs):
            self._fail_job(job, error)

    async def alone(self, work: Callable[[], T]) -> T:
        """Run work in the thread while nothing else waits or runs.

        Raises:
            Overloaded: something does.
        """
        self.check_room(0)
        if not self.idle:
            raise Overloaded()
        done: asyncio.Future[T] = self._loop.create_future()
        self._works.add(done)
        done.add_done_callback(self._works.discard)

        def finish(result: T | None, error: BaseException | None) -> None:
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(cast(T, result))

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                self._loop.call_soon_threadsafe(finish, None, error)
            else:
                self._loop.call_soon_threadsafe(finish, result, None)

        self._send(run)
        return await done

    async def stop(self) -> None:
        """End the thread, and what still runs."""
        self.fail(ShuttingDown(retry_seconds=10))
        with self._changed:
            self._closed = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _send(self, work: Callable[[], None]) -> None:
        with self._changed:
            self._inbox.append(work)
            self._changed.notify()

    def _deliver(self, events: list[tuple[Job, int, Found]]) -> None:
        for job, index, event in events:
            broken = isinstance(event, Event) and event.finish == "invalid"
            self._faults = self._faults + 1 if broken else 0
            if index in job.open:
                job.queue.put_nowait((index, event))
                task = job.tasks[index]
                more = not event.finish if isinstance(event, Event) else bool(task.request)
                if not more:
                    job.open.discard(index)
            if not job.open:
                self._jobs.discard(job)

    def _fail_job(self, job: Job, error: Refusal) -> None:
        self.abort(job)
        job.queue.put_nowait(error)

    def _failed(self) -> None:
        self._faults += 1
        self.fail(EngineFailed())

    def _invalid(self, job: Job, error: Refusal) -> None:
        self._faults += 1
        self._fail_job(job, error)

    def _died(self) -> None:
        self.alive = False
        self.fail(EngineFailed())
        for done in list(self._works):
            if not done.done():
                done.set_exception(EngineFailed())

    # -- engine thread ------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self._run()
        except BaseException:
            log.critical("the engine has stopped; the server must be restarted", exc_info=True)
            self._loop.call_soon_threadsafe(self._died)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._inbox or self._readings or self._engine.busy or self._closed):
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
                    self._readings.clear()
                    self._engine.clear()
                    self._loop.call_soon_threadsafe(self._failed)

    def _add(self, job: Job, indices: set[int]) -> None:
        for index in sorted(indices):
            task = job.tasks[index]
            if asked := task.reading:
                self._readings.append(Reading(job, index, asked, asked.steps(self._engine)))
            elif task.request:
                self._generate(job, index, task.request)

    def _generate(self, job: Job, index: int, request: Request) -> None:
        number = self._engine.add(request)
        job.numbers[number] = index
        self._owners[number] = job

    def _abort(self, job: Job, ended: set[int]) -> None:
        kept = [r for r in self._readings if r.job is not job or r.index not in ended]
        self._readings = deque(kept)
        for number, index in job.numbers.items():
            if index in ended and number in self._owners:
                del self._owners[number]
                self._engine.abort(number)

    def _read(self) -> None:
        """One step of the first ids to read. They take turns where none of them has a cache."""
        if not self._readings:
            return
        reading = self._readings[0]
        if (part := next(reading.steps, None)) is not None:
            reading.done.append(part)
            if reading.asked.interruptible(part):
                self._readings.rotate(-1)
            return
        self._readings.popleft()
        job, index, asked = reading.job, reading.index, reading.asked
        try:
            found: Found = asked.joined(reading.done)
        except NotFinite as error:
            self._loop.call_soon_threadsafe(self._invalid, job, error)
            return
        if request := job.tasks[index].request:
            self._generate(job, index, request)
        self._loop.call_soon_threadsafe(self._deliver, [(job, index, found)])

    def _step(self) -> None:
        events: list[tuple[Job, int, Found]] = []
        for event in self._engine.step():
            job = self._owners[event.request]
            events.append((job, job.numbers[event.request], event))
            if event.finish:
                del self._owners[event.request]
        if events:
            self._loop.call_soon_threadsafe(self._deliver, events)
