"""One exchange with one replica: its answer, whole or as a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2 as httpx
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from culm.serve.http.error import ApiError
from culm.serve.route.prefixes import prompt_keys
from culm.serve.route.replicas import Replica

METHODS = ["GET", "HEAD", "POST", "DELETE", "OPTIONS"]

API = ("/v1/", "/tokenize", "/detokenize")  # paths where asking twice changes nothing
SESSION = "mcp-session-id"
CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 60.0  # a stream has a comment every 15 seconds
# Of one connection, or written again by the servers; Origin has been checked here.
DROPPED = frozenset(
    "accept-encoding connection content-length date host keep-alive origin server "
    "transfer-encoding upgrade x-request-id".split()
)


@dataclass(frozen=True)
class Asked:
    """A request that has arrived. keys: of the blocks of its prompt. whole_seconds: how long a
    replica may take for an answer that is no stream.
    """

    method: str
    path: str
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    keys: Sequence[bytes]
    stream: bool
    whole_seconds: float

    @property
    def repeatable(self) -> bool:
        """Whether one more replica may be asked after one that broke off."""
        return self.method in ("GET", "HEAD", "OPTIONS") or self.path.startswith(API)

    @property
    def session(self) -> str:
        """Of MCP; empty: there is none."""
        return dict(self.headers).get(SESSION.encode(), b"").decode("latin-1")


async def asked_of(request: Request, blocks: int, whole_seconds: float) -> Asked:
    """Read a request. blocks: of its prompt that get keys, at most."""
    body = await request.body()
    fields: Any = None
    with suppress(ValueError, RecursionError):  # a replica says what is wrong
        fields = json.loads(body) if body else None
    fields = fields if isinstance(fields, dict) else {}
    return Asked(
        request.method, request.scope["path"], request.scope["query_string"],
        tuple(request.headers.raw), body, prompt_keys(fields, request.state.client.salt, blocks),
        bool(fields.get("stream")), whole_seconds,
    )  # fmt: skip


async def answer_of(
    replica: Replica, asked: Asked, client: httpx.AsyncClient, broke: Callable[[], None]
) -> Response:
    """The answer of a replica. broke: called where a stream does not come to its end.

    Raises:
        httpx2.TransportError: there is none, or not to its end; the client has seen nothing.
    """
    silence = SILENCE_SECONDS if asked.stream else asked.whole_seconds
    headers = [pair for pair in asked.headers if pair[0].decode("latin-1") not in DROPPED]
    async with AsyncExitStack() as stack:
        stack.enter_context(replica.asked())
        sent = client.stream(
            asked.method, _url(replica, asked), content=asked.body,
            headers=[*headers, (b"accept-encoding", b"identity")],
            timeout=httpx.Timeout(silence, connect=CONNECT_SECONDS),
        )  # fmt: skip
        response = await stack.enter_async_context(sent)
        kind = response.headers.get("content-type", "")
        if kind.startswith("text/event-stream"):
            return Relay(response, asked, broke, stack.pop_all())
        return _with_headers(Response(await response.aread(), response.status_code), response)


class Relay(StreamingResponse):
    """A stream of a replica; in API's paths, one that breaks off ends with an error."""

    def __init__(
        self, response: httpx.Response, asked: Asked, broke: Callable[[], None],
        stack: AsyncExitStack,
    ) -> None:  # fmt: skip
        """stack: what is open as long as the stream is."""
        pieces: AsyncIterator[bytes] = response.aiter_raw()
        if asked.path.startswith(API):
            pieces = events(pieces, broke, httpx.TransportError)
        super().__init__(pieces, response.status_code)
        _with_headers(self, response)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._stack.aclose()


def _url(replica: Replica, asked: Asked) -> str:
    query = f"?{asked.query.decode('latin-1')}" if asked.query else ""
    return f"{replica.url}{quote(asked.path)}{query}"


async def events(
    pieces: AsyncIterator[bytes], broke: Callable[[], None], lost: type[Exception]
) -> AsyncIterator[bytes]:
    """Whole events, so that an error can follow each of them: where `lost` ends the pieces."""
    held = b""
    try:
        async for piece in pieces:
            whole, end, rest = (held + piece).rpartition(b"\n\n")
            if end:
                yield whole + end
            held = rest
        if held:
            yield held
    except lost:
        broke()
        yield f"data: {json.dumps(broken_off().body)}\n\n".encode()


def broken_off() -> ApiError:
    """The error of an answer that a replica has not completed."""
    return ApiError(502, "The server that answered broke off; ask again.", "replica_lost")


async def refused(request: Request, error: ApiError) -> Response:
    """The response of an error."""
    return error.response()


def _with_headers(answer: Response, of: httpx.Response) -> Response:
    kept = MutableHeaders(raw=answer.raw_headers)
    for name, value in of.headers.multi_items():
        if name not in DROPPED:
            kept[name] = value
    return answer
