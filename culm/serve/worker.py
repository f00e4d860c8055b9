"""The engine in a thread of its own, and the requests that wait for it in the event loop.

event loop          submit, abort  ->   inbox   ->   engine thread
(one per server)  <-  one call per step with all its tokens  <-  step, step, step ...
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from culm.engine.engine import Engine
from culm.engine.request import Event, Request
from culm.serve.refusal import EngineFailed, InvalidRequest, Overloaded, Refusal, ShuttingDown

log = logging.getLogger("culm.serve")

JobEvent = tuple[int, Event]  # index of the request in its job, and a token of it


class Job:
    """Requests of one client that share a queue of events."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = tuple(requests)
        self.open = set(range(len(requests)))  # those that have not ended
        self.numbers: dict[int, int] = {}  # request's number in the engine -> index
        self.queue: asyncio.Queue[JobEvent | Refusal] = asyncio.Queue()

    async def next(self) -> JobEvent:
        """The next event of any of the requests; raises what went wrong."""
        item = await self.queue.get()
        if isinstance(item, Refusal):
            raise item
        return item


class Worker:
    """waiting: how many requests may queue up in addition to those in the engine's slots.

    capacity: maximum number of requests that wait or run.
    """

    def __init__(self, engine: Engine, waiting: int = 64) -> None:
        self._engine = engine
        self.capacity = engine.slots + waiting
        self._jobs: set[Job] = set()  # of the event loop
        self._calls: set[asyncio.Future[Any]] = set()
        self._inbox: list[Callable[[], None]] = []  # for the thread, guarded by _changed
        self._changed = threading.Condition()
        self._closed = False
        self._owners: dict[int, Job] = {}  # of the thread: engine's number -> job
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.draining = False

    # -- event loop ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; called in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether no request or call is open."""
        return not (self._jobs or self._calls)

    @property
    def open(self) -> int:
        """Requests that wait or run."""
        return sum(len(job.open) for job in self._jobs)

    def check_room(self, count: int) -> None:
        """ShuttingDown, or Overloaded where `count` more requests are too many."""
        if self.draining:
            raise ShuttingDown(retry_seconds=10)
        if self.open + count > self.capacity:
            raise Overloaded()

    def submit(self, requests: Sequence[Request]) -> Job:
        """Start the requests; if one cannot be served, none is."""
        self.check_room(len(requests))
        for request in requests:
            try:
                self._engine.check(request)
            except ValueError as error:
                raise InvalidRequest(str(error)) from None
        job = Job(requests)
        if job.open:
            self._jobs.add(job)
            self._send(lambda: self._add(job))
        return job

    def abort(self, job: Job, index: int | None = None) -> None:
        """End one of a job's requests, or all; those that have ended stay as they are."""
        ended = job.open & {index} if index is not None else set(job.open)
        job.open -= ended
        if ended:
            self._send(lambda: self._abort(job, ended))
        if not job.open:
            self._jobs.discard(job)

    async def call(self, function: Callable[[], Any]) -> Any:
        """The result of a function that uses the model, run between two steps."""
        future: asyncio.Future[Any] = self._loop.create_future()

        def work() -> None:
            try:
                result = function()
            except Exception as error:
                self._loop.call_soon_threadsafe(_settle, future, None, error)
            else:
                self._loop.call_soon_threadsafe(_settle, future, result, None)

        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        self._send(work)
        return await future

    def fail(self, error: Refusal) -> None:
        """End all requests and calls; whoever waits gets the error."""
        for job in list(self._jobs):
            self.abort(job)
            job.queue.put_nowait(error)
        for future in list(self._calls):
            _settle(future, None, error)

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

    def _deliver(self, events: list[tuple[Job, int, Event]]) -> None:
        for job, index, event in events:
            if index in job.open:
                job.queue.put_nowait((index, event))
                if event.finish:
                    job.open.discard(index)
            if not job.open:
                self._jobs.discard(job)

    # -- engine thread ------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._inbox or self._engine.busy or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
                inbox, self._inbox = self._inbox, []
            for work in (*inbox, self._step):
                try:
                    work()
                except Exception:
                    log.exception("the engine failed; its requests end, and it goes on")
                    self._owners.clear()
                    self._engine.clear()
                    self._loop.call_soon_threadsafe(self.fail, EngineFailed())

    def _add(self, job: Job) -> None:
        for index, request in enumerate(job.requests):
            number = self._engine.add(request)
            job.numbers[number] = index
            self._owners[number] = job

    def _abort(self, job: Job, ended: set[int]) -> None:
        for number, index in job.numbers.items():
            if index in ended and number in self._owners:
                del self._owners[number]
                self._engine.abort(number)

    def _step(self) -> None:
        events = []
        for event in self._engine.step():
            job = self._owners[event.request]
            events.append((job, job.numbers[event.request], event))
            if event.finish:
                del self._owners[event.request]
        if events:
            self._loop.call_soon_threadsafe(self._deliver, events)


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
