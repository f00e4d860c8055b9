"""What the gRPC services share: their messages, who calls, and the status of a refusal."""

from __future__ import annotations

from typing import Any

import grpc

from culm.serve import refusal
from culm.serve.clients import Client, Clients
from culm.serve.refusal import Refusal

STATUSES = {
    refusal.UnknownModel: grpc.StatusCode.NOT_FOUND,
    refusal.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    refusal.FormFailed: grpc.StatusCode.INVALID_ARGUMENT,
    refusal.RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    refusal.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    refusal.ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    refusal.EngineStopped: grpc.StatusCode.UNAVAILABLE,
    refusal.TooSlow: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def protocol(name: str) -> tuple[Any, Any]:
    """Messages and services of a .proto file in this folder."""
    return grpc.protos_and_services(f"culm/serve/grpc/{name}.proto")


async def refused(context: grpc.aio.ServicerContext, error: Refusal) -> None:
    """End a call with the status of a refusal."""
    kinds = (status for kind, status in STATUSES.items() if isinstance(error, kind))
    await context.abort(next(kinds, grpc.StatusCode.INTERNAL), str(error))


def client_of(metadata: Any, clients: Clients) -> Client | None:
    """Who calls, by `authorization: Bearer KEY`; None: the key is missing or wrong."""
    given = dict(metadata or ()).get("authorization", "")
    kind, _, key = (given if isinstance(given, str) else given.decode()).partition(" ")
    return clients.find(key.strip().encode() if kind.lower() == "bearer" else b"")
