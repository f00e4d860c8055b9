"""The tools of `culm.serve.mcp` at /mcp; without the package `mcp`, an error that says so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from culm.serve.http.error import ApiError
from culm.serve.service import Service

PATH = "/mcp"


@dataclass(frozen=True)
class McpRoutes:
    """running: what must be entered while the application lives."""

    routes: list[BaseRoute]
    running: Callable[[], AbstractAsyncContextManager[None]]


def mcp_routes(service: Service) -> McpRoutes:
    try:
        from mcp.server.transport_security import TransportSecuritySettings

        from culm.serve.mcp import server_of
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "mcp":
            raise
        return McpRoutes([Route(PATH, _missing, methods=["GET", "POST"])], nullcontext)
    server = server_of(service)
    # `Guard` has checked the headers Host and Origin, and reads the body.
    checked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    inner = server.streamable_http_app(streamable_http_path=PATH, transport_security=checked)
    return McpRoutes(list(inner.routes), server.session_manager.run)


async def _missing(request: Request) -> Response:
    text = "This server has no MCP: pip install 'culm[mcp]'"
    return ApiError(501, text, "not_installed").response()
