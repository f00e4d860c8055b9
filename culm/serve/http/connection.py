"""One connection of a client, with limits for those that send no request or read no answer."""

from __future__ import annotations

import asyncio
import secrets

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from culm.serve.http.error import invalid
from culm.serve.http.guard import HEADERS

HEAD_SECONDS = 10.0
READ_SECONDS = 30.0
MAX_CONNECTIONS = 1000


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, except that clients cannot keep connections without using them.

    One that does not send the head of a request within `head_seconds` is closed, and so is one
    that reads nothing of its answer for `read_seconds`. Where more than `max_connections` are
    open, the oldest one without a request is closed.
    """

    head_seconds = HEAD_SECONDS
    read_seconds = READ_SECONDS
    max_connections = MAX_CONNECTIONS
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = self.loop.time()
        self._watch()
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()
        self._stop_waiting()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP with an error of the usual form, if no answer has started."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = {**HEADERS, "x-request-id": secrets.token_hex(8), "connection": "close"}
            answer = invalid(msg, code="invalid_http").response(headers)
            head = h11.Response(status_code=400, headers=answer.raw_headers)
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        """Every byte of a head that is not complete yet has the same deadline."""
        if self.busy or self.transport.is_closing():
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.head_seconds, self._expire)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        if not self.busy:
            self.transport.close()
            self._wait_for_reader()  # it stays open until all has been read

    def _wait_for_reader(self) -> None:
        if self._unread is None:
            left = self.transport.get_write_buffer_size()
            self._unread = self.loop.call_later(self.read_seconds, self._check_reader, left)

    def _stop_waiting(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _check_reader(self, before: int) -> None:
        self._unread = None
        if 0 < before <= self.transport.get_write_buffer_size():
            self.transport.abort()
        elif before:
            self._wait_for_reader()

    def _make_room(self) -> None:
        others = [one for one in self.connections if isinstance(one, Connection)]
        alive = [one for one in others if not one.transport.is_closing()]
        if len(alive) > self.max_connections:
            idle = [one for one in alive if not one.busy]
            min(idle, key=lambda one: one.since).transport.abort()  # this one is idle too


def limited(descriptors: int | None) -> type[Connection]:
    """Connections of a process with this limit on open files: half of it is for them."""
    half = MAX_CONNECTIONS if descriptors is None else descriptors // 2

    class LimitedConnection(Connection):
        max_connections = max(1, min(MAX_CONNECTIONS, half))

    return LimitedConnection
