"""Culm on Ray Serve: replicas of one model, more of them when many ask.

    pip install 'culm[ray-serve]'
    CULM_MODEL=/models/books-chat CULM_API_KEY=SECRET serve run culm.serve.ray:build replicas=4

client --> Ray's proxy --> Front: keys of the prompt --> PrefixRouter --> Replica: queue, engine

A request goes to the replica that has most likely read the beginning of its prompt, as in
`culm route`. Each replica is the application of `culm.serve.asgi`; variables are those of that
module. All machines of a cluster have the model under the same path.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.lifespan.on import LifespanOn

from culm.config import SettingError
from culm.engine.prefix import BLOCK
from culm.serve.asgi import app, settings_of
from culm.serve.http.error import ApiError
from culm.serve.http.guard import Guard
from culm.serve.http.leaving import unless_gone
from culm.serve.route.relay import API, METHODS, Asked, asked_of, broken_off, events, refused
from culm.serve.route.replicas import Load, preferred

try:
    from ray import serve
    from ray.exceptions import RayActorError
    from ray.serve.config import RequestRouterConfig
    from ray.serve.request_router import (
        PendingRequest,
        ReplicaID,
        ReplicaResult,
        RequestRouter,
        RunningReplica,
    )
except ImportError:
    raise SettingError("culm.serve.ray: it needs an extra: pip install 'culm[ray-serve]'") from None

WAITING = 1000  # requests that a front passes on at once
VARIABLES = ("CULM_MODEL", "CULM_API_KEY", "CULM_NAME", "CULM_SERVE_CONFIG", "XDG_CACHE_HOME")
SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string",
         "root_path", "headers", "client", "server")  # fmt: skip


class Replica:
    """One model. Ray keeps as many of them as are needed."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Ray awaits it, and __del__
        self._app = app()
        self._lifespan = LifespanOn(Config(self._app, lifespan="on", log_config=None))
        await self._lifespan.startup()
        if self._lifespan.should_exit:
            raise RuntimeError("the server did not start; its log says why")

    async def __del__(self) -> None:
        await self._lifespan.shutdown()

    async def answer(
        self, keys: Sequence[bytes], scope: dict[str, Any], body: bytes
    ) -> AsyncGenerator[Message, None]:
        """The application's messages for one request. keys: for the `PrefixRouter`."""
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        messages, never = asyncio.Queue[Message | None](), asyncio.Event()

        async def receive() -> Message:
            if not whole:
                await never.wait()  # a client that has left cancels the work
            return whole.pop()

        work = asyncio.create_task(self._app(scope, receive, messages.put))
        work.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                yield message
            await work
        finally:  # also if the client has left
            work.cancel()


class PrefixRouter(RequestRouter):
    """Chooses the replica for a request, in the process of a front."""

    def initialize_state(self) -> None:
        _, settings, _ = settings_of(os.environ)
        self._blocks, self._slots = settings.prefix_tokens // BLOCK, settings.slots
        self._loads: dict[ReplicaID, Load] = {}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The preferred one, and then all: Ray takes the first that has room."""
        known, self._loads = self._loads, {}
        for one in candidate_replicas:
            name = one.replica_id
            self._loads[name] = known.get(name) or Load(str(name), self._blocks)
        keys = _keys(pending_request)
        best = preferred(list(self._loads.values()), keys, self._slots)
        first = [one for one in candidate_replicas if self._loads[one.replica_id] is best]
        return [first, candidate_replicas]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        super().on_send_request(replica_id)
        if load := self._loads.get(replica_id):
            load.open += 1

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult
    ) -> None:
        if load := self._loads.get(replica_id):
            load.kept.add(_keys(pending_request))

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        if load := self._loads.get(replica_id):
            load.open -= 1


def _keys(request: PendingRequest | None) -> Sequence[bytes]:
    return request.args[0] if request is not None and request.args else ()


def front() -> Starlette:
    """The application that reads requests; a replica computes each answer."""
    _, settings, clients = settings_of(os.environ)
    replicas = serve.get_deployment_handle("Replica").options(method_name="answer", stream=True)
    blocks = settings.prefix_tokens // BLOCK

    async def answer(request: Request) -> Response:
        asked = await asked_of(request, blocks, settings.answer_seconds)
        scope = {name: request.scope[name] for name in SCOPE if name in request.scope}
        ask = partial(replicas.remote, asked.keys, scope, asked.body)
        return await unless_gone(request, _first(asked, ask))

    guard = Middleware(
        Guard, clients=clients, local=False, max_bytes=settings.body_bytes,
        hosts=settings.allowed_hosts,
    )  # fmt: skip
    errors: Any = {ApiError: refused}
    routes = [Route("/{path:path}", answer, methods=METHODS)]
    return Starlette(routes=routes, middleware=[guard], exception_handlers=errors)


async def _first(asked: Asked, ask: Any) -> Response:
    """The answer of a replica; of another one, if it was lost before the answer began."""
    for tries_left in (asked.repeatable, False):
        messages = ask()
        try:
            start = await anext(messages)
            break
        except RayActorError:
            if not tries_left:
                raise broken_off() from None
        except asyncio.CancelledError:  # the client has left
            messages.cancel()
            raise
    return Passed(messages, start, asked)


class Passed(StreamingResponse):
    """The messages of a replica as they come; in API's paths, a stream that breaks off ends with an
    error.
    """

    def __init__(self, messages: Any, start: Message, asked: Asked) -> None:
        pieces: AsyncIterator[bytes] = (message.get("body", b"") async for message in messages)
        kind = Headers(raw=start["headers"]).get("content-type", "")
        if kind.startswith("text/event-stream") and asked.path.startswith(API):
            pieces = events(pieces, lambda: None, RayActorError)
        super().__init__(pieces, start["status"])
        self.raw_headers = list(start["headers"])
        self._messages = messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # also if the client has left
            self._messages.cancel()


class Front:
    """Takes the requests of clients, by the application of `front`."""

    def __init__(self, replicas: Any) -> None:
        """replicas: bound so that Ray starts them; `front` gets their handle by name."""


def build(arguments: dict[str, str]) -> serve.Application:
    """The application. arguments: replicas, the maximum, 4 by default; least, the minimum, 1; gpus
    of each, 0; cpus, 4.

    Ray adds a replica when those that run have more requests each than they compute at once.

    Raises:
        SettingError: an argument is unknown, or as `settings_of`.
    """
    _, settings, _ = settings_of(os.environ)
    given = {"replicas": 4.0, "least": 1.0, "gpus": 0.0, "cpus": 4.0}
    if unknown := arguments.keys() - given.keys():
        raise SettingError(f"{', '.join(sorted(unknown))}: not one of {', '.join(given)}")
    given |= {name: float(value) for name, value in arguments.items()}
    names = {*VARIABLES, *(key.env for key in settings.keys if key.env)}
    variables = {name: os.environ[name] for name in names if name in os.environ}
    environment = {"runtime_env": {"env_vars": variables}}
    scaling = {
        "min_replicas": int(given["least"]), "max_replicas": int(given["replicas"]),
        "target_ongoing_requests": settings.slots,
    }  # fmt: skip
    replicas = serve.deployment(Replica).options(
        autoscaling_config=scaling, max_ongoing_requests=4 * settings.slots,
        graceful_shutdown_timeout_s=90,
        ray_actor_options={"num_gpus": given["gpus"], "num_cpus": given["cpus"], **environment},
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
    )  # fmt: skip
    fronts = serve.deployment(serve.ingress(front)(Front)).options(
        max_ongoing_requests=WAITING, ray_actor_options={"num_cpus": 0, **environment}
    )
    return fronts.bind(replicas.bind())
