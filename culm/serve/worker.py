"""The engine in a thread of its own, and the requests that wait for it in the event loop.

event loop          submit, abort  ->   inbox   ->   engine thread
(one per server)  <-  one call per step with all its tokens  <-  step, step, step ...
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

from culm.engine import scoring
from culm.engine.engine import Engine
from culm.engine.request import Event, Request
from culm.engine.scoring import Ranked
from culm.serve.refusal import EngineFailed, InvalidRequest, Overloaded, Refusal, ShuttingDown

log = logging.getLogger("culm.serve")
T = TypeVar("T")

# The index of a task in its job, with the scores of its prompt or with a token.
JobEvent = tuple[int, Ranked | Event]


@dataclass(frozen=True)
class Scoring:
    """Ids to score, each with the `ranks` most likely ones in its place."""

    ids: tuple[int, ...]
    ranks: int
    adapter: str | None = None


@dataclass(frozen=True)
class WorkerTask:
    """What counts as one request: ids to score, a prompt to continue, or first one, then the
    other."""

    scoring: Scoring | None = None
    request: Request | None = None


class Job:
    """Tasks of one client that share a queue of events."""

    def __init__(self, tasks: Sequence[WorkerTask]) -> None:
        self.tasks = tuple(tasks)
        self.open = {i for i, task in enumerate(tasks) if task.scoring or task.request}
        self.numbers: dict[int, int] = {}  # request's number in the engine -> index
        self.queue: asyncio.Queue[JobEvent | Refusal] = asyncio.Queue()

    async def next(self) -> JobEvent:
        """The next event of any of the tasks; raises what went wrong."""
        item = await self.queue.get()
        if isinstance(item, Refusal):
            raise item
        return item


@dataclass
class Reading:
    """Ids that are being scored, step by step."""

    job: Job
    index: int
    steps: Iterator[Ranked]
    done: list[Ranked] = field(default_factory=list)


class Worker:
    """waiting: how many requests may queue up in addition to those in the engine's slots.

    capacity: maximum number of requests that wait or run.
    """

    def __init__(self, engine: Engine, waiting: int = 64) -> None:
        self._engine = engine
        self.capacity = engine.slots + waiting
        self._jobs: set[Job] = set()  # of the event loop
        self._inbox: list[Callable[[], None]] = []  # for the thread, guarded by _changed
        self._changed = threading.Condition()
        self._closed = False
        self._owners: dict[int, Job] = {}  # of the thread: engine's number -> job
        self._readings: deque[Reading] = deque()  # of the thread
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.draining = False

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
        return sum(len(job.open) for job in self._jobs)

    def check_room(self, count: int) -> None:
        """ShuttingDown, or Overloaded where `count` more requests are too many."""
        if self.draining:
            raise ShuttingDown(retry_seconds=10)
        if self.open + count > self.capacity:
            raise Overloaded()

    def submit(self, tasks: Sequence[WorkerTask]) -> Job:
        """Start the tasks; if one cannot be served, none is."""
        job = Job(tasks)
        self.check_room(len(job.open))
        for task in tasks:
            try:
                if ids := task.scoring:
                    scoring.check(self._engine.model, [ids.ids], [ids.adapter])
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
            self.abort(job)
            job.queue.put_nowait(error)

    async def alone(self, work: Callable[[], T]) -> T:
        """Run work in the thread while nothing else waits or runs.

        Raises:
            Overloaded: something does.
        """
        if not self.idle:
            raise Overloaded()
        return await self.between_steps(work)

    async def between_steps(self, work: Callable[[], T]) -> T:
        """Run work in the thread, between two steps of the engine."""
        done: asyncio.Future[T] = self._loop.create_future()

        def finish(result: T | None, error: Exception | None) -> None:
            if done.cancelled():
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

    def _deliver(self, events: list[tuple[Job, int, Ranked | Event]]) -> None:
        for job, index, event in events:
            if index in job.open:
                job.queue.put_nowait((index, event))
                if event.finish if isinstance(event, Event) else not job.tasks[index].request:
                    job.open.discard(index)
            if not job.open:
                self._jobs.discard(job)

    # -- engine thread ------------------------------------------------------------------------

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
                    self._loop.call_soon_threadsafe(self.fail, EngineFailed())

    def _add(self, job: Job, indices: set[int]) -> None:
        for index in sorted(indices):
            task = job.tasks[index]
            if ids := task.scoring:
                steps = self._engine.rank_in_steps(ids.ids, ids.ranks, ids.adapter)
                self._readings.append(Reading(job, index, steps))
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
        """One step of the first prompt to score: one at a time, because each needs a cache."""
        if not self._readings:
            return
        reading = self._readings[0]
        if (part := next(reading.steps, None)) is not None:
            reading.done.append(part)
            return
        self._readings.popleft()
        job, index = reading.job, reading.index
        request = job.tasks[index].request
        if request:
            self._generate(job, index, request)
        events: list[tuple[Job, int, Ranked | Event]] = [(job, index, scoring.joined(reading.done))]
        self._loop.call_soon_threadsafe(self._deliver, events)

    def _step(self) -> None:
        events: list[tuple[Job, int, Ranked | Event]] = []
        for event in self._engine.step():
            job = self._owners[event.request]
            events.append((job, job.numbers[event.request], event))
            if event.finish:
                del self._owners[event.request]
        if events:
            self._loop.call_soon_threadsafe(self._deliver, events)
