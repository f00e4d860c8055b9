"""What the gRPC services share: their messages, who calls, and the status of an error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from culm.serve import refusal
from culm.serve.clients import Client, Clients
from culm.serve.refusal import InvalidRequest, Refusal

log = logging.getLogger("culm.serve")
READ_SECONDS = 30.0  # a client that takes none of its replies for so long is left
STATUSES = {
    refusal.UnknownModel: grpc.StatusCode.NOT_FOUND,
    refusal.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    refusal.FormFailed: grpc.StatusCode.INVALID_ARGUMENT,
    refusal.RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    refusal.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    refusal.ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    refusal.EngineStopped: grpc.StatusCode.UNAVAILABLE,
    refusal.NotReady: grpc.StatusCode.UNAVAILABLE,
    refusal.NotRead: grpc.StatusCode.RESOURCE_EXHAUSTED,
    refusal.TooSlow: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def protocol(name: str) -> tuple[Any, Any]:
    """Messages and services of a .proto file in this folder."""
    return grpc.protos_and_services(f"culm/serve/grpc/{name}.proto")


def client_of(metadata: Any, clients: Clients) -> Client | None:
    """Who calls, by `authorization: Bearer KEY`; None: the key is missing or wrong."""
    given = dict(metadata or ()).get("authorization", "")
    kind, _, key = (given if isinstance(given, str) else given.decode()).partition(" ")
    return clients.find(key.strip().encode() if kind.lower() == "bearer" else b"")


def caller(context: grpc.aio.ServicerContext, clients: Clients) -> Client:
    """Who calls; calls without a valid key do not come here."""
    client = client_of(context.invocation_metadata(), clients)
    assert client is not None
    return client


class Guard(grpc.aio.ServerInterceptor):
    """Gives every call of some services a status that is meant for the client.

    A refusal has its own. What is no message is INVALID_ARGUMENT. Other errors are logged, and tell
    the client nothing of the server.
    """

    def __init__(self, services: Sequence[str]) -> None:
        """services: full names, whose methods take a single request."""
        self._paths = tuple(f"/{name}/" for name in services)

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or not details.method.startswith(self._paths):
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _stream(handler.unary_stream), _or_none(handler.request_deserializer),
                handler.response_serializer,
            )  # fmt: skip
        return grpc.unary_unary_rpc_method_handler(
            _single(handler.unary_unary), _or_none(handler.request_deserializer),
            handler.response_serializer,
        )  # fmt: skip


def _or_none(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def attempt(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            return None

    return attempt


def _single(method: Any) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        async with _guarded(request, context):
            return await method(request, context)

    return call


def _stream(method: Any) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> None:
        # The replies are closed before the call: that frees their slot.
        async with _guarded(request, context), aclosing(method(request, context)) as replies:
            async for reply in replies:
                try:
                    async with asyncio.timeout(READ_SECONDS):
                        await context.write(reply)
                except TimeoutError:  # nor could a status be sent
                    raise asyncio.CancelledError from None

    return call


@asynccontextmanager
async def _guarded(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
    try:
        if request is None:
            raise InvalidRequest("The message cannot be read.")
        yield
    except Refusal as error:
        kinds = (status for kind, status in STATUSES.items() if isinstance(error, kind))
        await context.abort(next(kinds, grpc.StatusCode.INTERNAL), str(error))
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        log.error("a call failed", exc_info=error)
        text = "The server failed; its log says why."
        await context.abort(grpc.StatusCode.INTERNAL, text)
