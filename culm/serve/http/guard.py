"""Checks on every request before the application gets it, and headers of every response."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from culm.serve.clients import Clients
from culm.serve.http.error import ApiError, invalid, of_failure

OPEN = ("/", "/health", "/health/live", "/health/ready")  # need no key; all other paths do
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# For responses that are no page; the page has its own (`culm.serve.http.page.page`).
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
READ_BYTES = 64 << 20  # of a rejected body are read, so that the client sees the response
BODY_SECONDS = 30


class Guard:
    """Checks key, origin and size of each request.

    Every response has an `x-request-id` and a content security policy, errors of the application
    included.

    clients: whose key must be in `Authorization: Bearer KEY`; the application finds the client in
    its state. local: the server listens on this machine only, so it refuses pages of other sites,
    and host names that resolve to it, except for `hosts`. max_bytes: of a body.
    """

    def __init__(
        self,
        app: ASGIApp,
        clients: Clients,
        local: bool,
        max_bytes: int = 4 << 20,
        hosts: Sequence[str] = (),
    ) -> None:
        self._app, self._clients, self._local = app, clients, local
        self._max_bytes, self._hosts = max_bytes, (*LOOPBACK, *hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        number, started = secrets.token_hex(8), False
        scope.setdefault("state", {})["client"] = self._clients.anyone

        async def named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = number
                # What a server behind this one says of its limits stays: it counts them.
                for name, value in (scope["state"]["client"].headers() | HEADERS).items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._serve(scope, receive, named)
        except Exception as error:
            failure = of_failure(scope["method"], scope["path"], error)
            if started:  # too late for another status: the connection breaks off
                raise
            await failure.response()(scope, receive, named)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope)
            receive = await _buffered(scope, receive, self._max_bytes)
        except asyncio.CancelledError:  # the server stops before the request has arrived
            return
        except ApiError as error:
            await error.response({"Connection": "close"})(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._local:
            _check_local(headers.get("host", ""), headers.get("origin"), self._hosts)
        if scope["path"] in OPEN and not self._clients.open:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        bearer = kind.lower() == "bearer"
        client = self._clients.find(given.strip().encode("latin-1") if bearer else b"")
        if client is None:
            raise ApiError(401, "The API key is missing or wrong.", "invalid_api_key")
        scope["state"]["client"] = client


def _check_local(host: str, origin: str | None, allowed: Sequence[str]) -> None:
    try:
        name = urlsplit(f"//{host}").hostname
        page = urlsplit(origin).netloc if origin else host
    except ValueError as error:
        raise invalid(f"Host or Origin: {error}", code="invalid_header") from None
    if name not in allowed:
        raise ApiError(403, "This server accepts requests to localhost only.", "forbidden_host")
    if page != host:
        raise ApiError(403, "Pages of other sites may not use this server.", "forbidden_origin")


async def _buffered(scope: Scope, receive: Receive, max_bytes: int) -> Receive:
    """Read the body, within limits, and return a `receive` that replays it."""
    declared = Headers(scope=scope).get("content-length", "0")
    body, more, size = bytearray(), True, 0
    # Digits that are no ASCII and numbers of any length can stand here.
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > READ_BYTES):
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    break
                part = message.get("body", b"")
                more, size = message.get("more_body", False), size + len(part)
                if size <= max_bytes:
                    body += part
                elif size > READ_BYTES:
                    raise _too_large(max_bytes)
    except TimeoutError:
        raise ApiError(408, "The body did not arrive in time.", "timeout") from None
    if size > max_bytes:
        raise _too_large(max_bytes)
    kind = Headers(scope=scope).get("content-type", "none").partition(";")[0].strip().lower()
    if scope["method"] == "POST" and kind != "application/json":
        raise ApiError(
            415, f"Content-Type: {kind}, but it should be application/json.", "unsupported_media"
        )
    waiting: list[Message] = [
        {"type": "http.request", "body": bytes(body), "more_body": False},
        *([{"type": "http.disconnect"}] if more else []),
    ]

    async def again() -> Message:
        return waiting.pop(0) if waiting else await receive()

    return again


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body is larger than {limit / 2**20:.3g} MiB.", "request_too_large")
