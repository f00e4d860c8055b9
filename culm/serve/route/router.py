"""One address for several servers of one model.

A request goes to the replica that has most likely read the beginning of its prompt. If that one
does not answer, the next one is asked; once a client has a part of an answer, it gets the rest or
an error.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx2 as httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from culm.engine.prefix import BLOCK
from culm.serve.clients import Clients
from culm.serve.http.error import ApiError
from culm.serve.http.guard import LOOPBACK, Guard
from culm.serve.http.leaving import unless_gone
from culm.serve.route.counts import Counts
from culm.serve.route.relay import (
    METHODS,
    SESSION,
    Asked,
    answer_of,
    asked_of,
    broken_off,
    refused,
)
from culm.serve.route.replicas import Replica, Replicas
from culm.serve.settings import ServeConfig

SESSIONS = 10_000  # of MCP's older versions, each of which lives in one replica


class Router:
    """Sends each request to one of the servers at `urls`.

    settings: those of the replicas, for the limits on bodies and the size of their caches. Each
    replica checks keys again and counts their limits for itself.
    """

    def __init__(self, urls: Sequence[str], settings: ServeConfig) -> None:
        self.settings = settings
        self._blocks = settings.prefix_tokens // BLOCK
        self._replicas = Replicas(urls, settings.slots, self._blocks)
        self._counts = Counts(self._replicas.all)
        self._sessions: OrderedDict[str, Replica] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False

    # -- start and stop, as in a service ----------------------------------------------------------

    @asynccontextmanager
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        """Connections to the replicas."""
        # A hundred connections, which is usual, would be a queue that nobody sees.
        # One that a server is about to close, after 5 seconds, would look like a server that fails.
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=100, keepalive_expiry=2.0
        )
        async with httpx.AsyncClient(limits=limits, trust_env=False) as self._client:
            yield
            for replica in self._replicas.all:
                replica.close()

    def drain(self) -> None:
        """Refuse new requests; running ones go on."""
        self.draining = True

    @property
    def idle(self) -> bool:
        """Whether no request waits for a replica."""
        return not any(one.open for one in self._replicas.all)

    def end_all(self) -> None:
        """Close all connections to replicas; clients get an error."""
        if not self.idle:
            self._tasks.add(asyncio.create_task(self._client.aclose()))

    # -- routes -------------------------------------------------------------------------------

    async def live(self, request: Request) -> Response:
        """The router lives."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """A replica takes requests."""
        found = [replica.ready(self._client) for replica in self._replicas.all]
        if self.draining or not any(await asyncio.gather(*found)):
            raise ApiError(503, "No server is ready.", "not_ready", retry=5)
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """How requests were shared."""
        return Response(self._counts.text(), media_type="text/plain; version=0.0.4")

    async def reload(self, request: Request) -> Response:
        """One replica alone would get the new weights."""
        raise ApiError(404, "POST /reload to each server at its own address.", "not_found")

    async def answer(self, request: Request) -> Response:
        """Of a replica, to anything else."""
        if self.draining:
            raise ApiError(503, "The server is shutting down.", "shutting_down", retry=10)
        asked = await asked_of(request, self._blocks, self.settings.answer_seconds)
        return await unless_gone(request, self._ask(asked))

    # -----------------------------------------------------------------------------------------

    async def _ask(self, asked: Asked) -> Response:
        """The answer of the first replica that has one, or the last refusal."""
        tried: list[Replica] = []
        refusal: Response | None = None
        broke = 0
        while replica := self._next(asked, tried):
            tried.append(replica)
            known = replica.kept.match(asked.keys)
            try:
                answer = await answer_of(replica, asked, self._client, partial(self._lose, replica))
            except httpx.TransportError as error:
                self._lose(replica)
                broke += not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if broke > asked.repeatable:  # a request that ends servers must not reach all
                    raise broken_off() from None
                continue
            if answer.status_code != 503:
                self._answered(replica, asked, answer, known)
                return answer
            refusal = answer
        if refusal is not None:
            return refusal
        raise ApiError(503, "No server can be reached; try again soon.", "no_replica", retry=5)

    def _next(self, asked: Asked, tried: Sequence[Replica]) -> Replica | None:
        if owner := self._sessions.get(asked.session):
            return None if owner in tried else owner
        return self._replicas.choose(asked.keys, tried)

    def _lose(self, replica: Replica) -> None:
        self._counts.lost(replica)
        replica.lose(self._client)

    def _answered(self, replica: Replica, asked: Asked, answer: Response, known: int) -> None:
        self._counts.answered(replica, len(asked.keys), known)
        if answer.status_code == 200:
            replica.kept.add(asked.keys)
        if session := answer.headers.get(SESSION):
            self._sessions[session] = replica
            self._sessions.move_to_end(session)
            if len(self._sessions) > SESSIONS:
                self._sessions.popitem(last=False)


def build(router: Router, clients: Clients) -> Starlette:
    """The application, with the checks of a server on every request."""
    settings = router.settings
    guard = Middleware(
        Guard, clients=clients, local=settings.host in LOOPBACK, max_bytes=settings.body_bytes,
        hosts=settings.allowed_hosts,
    )  # fmt: skip
    routes = [
        Route("/health/live", router.live),
        Route("/health/ready", router.ready),
        Route("/health", router.ready),
        Route("/metrics", router.metrics),
        Route("/reload", router.reload, methods=["POST"]),
        Route("/{path:path}", router.answer, methods=METHODS),
    ]
    errors: Any = {ApiError: refused}
    return Starlette(
        routes=routes, middleware=[guard], lifespan=router.running, exception_handlers=errors
    )
