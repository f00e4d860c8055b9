"""The engine in a thread of its own, and the requests that wait for it in the event loop.

event loop          submit, abort  ->   inbox   ->   engine thread
(one per server)  <-  one call per step with all its tokens  <-  step, step, step ...

An error of a step ends the requests of the engine, which goes on with the next ones. Where several
steps in a row fail, the worker is not `healthy`; where the thread has ended, it is not `alive`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from culm.engine.engine import Engine
from culm.engine.request import Event
from culm.serve.engine_thread import EngineThread
from culm.serve.job import Found, Job, WorkerTask
from culm.serve.refusal import (
    EngineFailed,
    EngineStopped,
    InvalidRequest,
    NotRead,
    Overloaded,
    Refusal,
    ShuttingDown,
)

T = TypeVar("T")
FAULTS = 2  # failures without a token between them, after which others should get the requests
UNREAD = 8192  # tokens of a job that may wait for a client that does not read its answer


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
        self.thread = EngineThread(engine, self)
        self._faults = 0  # since the last result
        self.draining = False
        self.alive = True

    # -- event loop ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; called in the event loop."""
        self._loop = asyncio.get_running_loop()
        self.thread.start(self._loop)

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
            self.thread.send(lambda: self.thread.add(job, job.open.copy()))
        return job

    def abort(self, job: Job, index: int | None = None) -> None:
        """End one of a job's tasks, or all; those that have ended stay as they are."""
        ended = job.open & {index} if index is not None else set(job.open)
        job.open -= ended
        if ended:
            self.thread.send(lambda: self.thread.abort(job, ended))
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

        self.thread.send(run)
        return await done

    async def stop(self) -> None:
        """End the thread, and what still runs."""
        self.fail(ShuttingDown(retry_seconds=10))
        await asyncio.to_thread(self.thread.close)

    # -- what the thread reports --------------------------------------------------------------

    def deliver(self, events: Sequence[tuple[Job, int, Found]]) -> None:
        """Tasks have got tokens, scores or vectors."""
        for job, index, event in events:
            broken = isinstance(event, Event) and event.finish == "invalid"
            self._faults = self._faults + 1 if broken else 0
            if job.open and job.queue.qsize() >= UNREAD:
                self._fail_job(job, NotRead())
            if index in job.open:
                job.queue.put_nowait((index, event))
                task = job.tasks[index]
                more = not event.finish if isinstance(event, Event) else bool(task.request)
                if not more:
                    job.open.discard(index)
            if not job.open:
                self._jobs.discard(job)

    def failed(self) -> None:
        """A step has failed, and with it all requests of the engine."""
        self._faults += 1
        self.fail(EngineFailed())

    def invalid(self, job: Job, error: Refusal) -> None:
        """What was read for a job is no use."""
        self._faults += 1
        self._fail_job(job, error)

    def died(self) -> None:
        """The thread has ended with an error."""
        self.alive = False
        self.fail(EngineFailed())
        for done in list(self._works):
            if not done.done():
                done.set_exception(EngineFailed())

    def _fail_job(self, job: Job, error: Refusal) -> None:
        self.abort(job)
        job.queue.put_nowait(error)
