"""The gRPC server: health, reflection, the Open Inference Protocol, and streams of answers.

It runs in the event loop of the service. Keys come in the metadata `authorization: Bearer KEY`;
health checks need none. A deadline or a cancelled call frees its slot at once.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from culm.config import SettingError
from culm.serve.clients import Clients
from culm.serve.grpc import generation, inference
from culm.serve.grpc.calls import Guard, client_of
from culm.serve.service import Service
from culm.serve.settings import ServeConfig

OPEN = "/grpc.health.v1.Health/"  # needs no key
MAX_CALLS = 1000  # at once
SECONDS = 0.2  # between two looks at whether the service is ready


class KeyCheck(grpc.aio.ServerInterceptor):
    """Refuses calls without a valid key before anything else reads them."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        known = client_of(details.invocation_metadata, self._clients)
        if known is not None or details.method.startswith(OPEN):
            return await continuation(details)

        async def deny(request: Any, context: grpc.aio.ServicerContext) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "The API key is missing or wrong.")

        return grpc.unary_unary_rpc_method_handler(deny)


@asynccontextmanager
async def running(service: Service, settings: ServeConfig, clients: Clients) -> AsyncIterator[int]:
    """Serve in the running event loop; gives the port.

    Raises:
        SettingError: the port is not available, or a certificate cannot be read.
    """
    server = grpc.aio.server(
        interceptors=[KeyCheck(clients), Guard([generation.NAME, inference.NAME])],
        maximum_concurrent_rpcs=MAX_CALLS,
        options=[
            ("grpc.max_receive_message_length", settings.body_bytes),
            ("grpc.so_reuseport", 0),
        ],
    )
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    generation.add(server, service, clients)
    inference.add(server, service, clients)
    names = [
        generation.NAME,
        inference.NAME,
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    ]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    port = _bind(server, settings)
    for name in ("", *names):
        await checks.set(name, _status(service.ready))
    await server.start()
    watching = asyncio.ensure_future(_watch(service, checks, ["", *names]))
    try:
        yield port
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await server.stop(settings.drain_seconds)


async def _watch(service: Service, checks: Any, names: Sequence[str]) -> None:
    """Say whether calls should come here, until the service drains."""
    said = service.ready
    while not service.draining:
        if service.ready != said:
            said = service.ready
            for name in names:
                await checks.set(name, _status(said))
        await asyncio.sleep(SECONDS)
    await checks.enter_graceful_shutdown()


def _status(ready: bool) -> Any:
    kinds = health_pb2.HealthCheckResponse
    return kinds.SERVING if ready else kinds.NOT_SERVING


def _bind(server: grpc.aio.Server, settings: ServeConfig) -> int:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port}"
    try:
        if settings.tls_certificate is None:
            return server.add_insecure_port(address)
        names = str(settings.tls_certificate), str(settings.tls_key)
        # gRPC itself does not say what is wrong with them.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*names)
        certificate, key = (Path(name).read_bytes() for name in names)
        return server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
    except OSError as error:
        raise SettingError(f"tls_certificate: {error}") from None
    except RuntimeError:
        raise SettingError(f"grpc_port: cannot listen on {address}; choose another") from None
