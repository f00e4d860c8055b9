"""Clients that send no request, or read no answer: their connections are closed."""

import contextlib
import json
import socket
import time

import httpx2 as httpx
import pytest
from reciter import TEXT, Running, until

from culm.serve.http.connection import limited


def works(server: Running) -> bool:
    """Whether an ordinary request is answered."""
    return httpx.get(server.url + "/v1/models").status_code == 200


@pytest.fixture
def narrow():
    """A server for 8 connections, with short time limits."""
    server = Running()
    kind = limited(16)
    kind.head_seconds = kind.read_seconds = 0.4
    server.server.config.http_protocol_class = kind
    yield server
    server.stop()


def is_closed(client: socket.socket, seconds: float) -> bool:
    client.settimeout(seconds)
    try:
        while client.recv(1000):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@pytest.fixture
def port(narrow):
    return narrow.listener.getsockname()[1]


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: localhost\r\nx: "])
def test_sockets_without_a_request_are_closed(narrow, port, sent):
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(sent)
        assert is_closed(client, 2)
    assert works(narrow)


def test_bytes_in_drops_do_not_extend_the_time(narrow, port):
    with socket.create_connection(("127.0.0.1", port)) as client:
        start = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() < start + 3:
                client.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() - start < 2


def test_half_a_head_after_an_answer_is_closed_too(narrow, port):
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200 OK" in client.recv(1000)
        client.sendall(b"GET / HT")
        assert is_closed(client, 2)


def test_silent_sockets_give_way_to_requests(narrow, port):
    narrow.server.config.http_protocol_class.head_seconds = 30.0
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    assert works(narrow)
    assert len(narrow.server.server_state.connections) <= 9
    for client in silent:
        client.close()


def test_an_answer_takes_longer_than_a_head_may(narrow):
    narrow.server.config.http_protocol_class.head_seconds = 0.05
    for _ in range(2):
        answer = narrow.client().chat.completions.create(
            model="reciter", messages=[{"role": "user", "content": "x"}], temperature=0
        )
        assert answer.choices[0].message.content == TEXT


# -- clients that do not read -------------------------------------------------------------------

LARGE = {  # some megabytes
    "model": "reciter", "prompt": "A", "ignore_eos": True, "max_tokens": 2000, "logprobs": 20,
}  # fmt: skip


def slow(server: Running, body: dict) -> socket.socket:
    """A client with little room for what it does not read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.listener.getsockname()[1]))
    sent = json.dumps(body).encode()
    head = f"content-type: application/json\r\ncontent-length: {len(sent)}\r\n\r\n"
    client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n" + head.encode() + sent)
    return client


def connections(server: Running) -> int:
    return len(server.server.server_state.connections)


@pytest.mark.parametrize("stream", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_clients_that_do_not_read_their_answer_are_closed(narrow, stream):
    clients = [slow(narrow, {**LARGE, "stream": stream}) for _ in range(3)]
    until(lambda: narrow.worker.open == 3)
    until(lambda: connections(narrow) == 0, 20)
    until(lambda: narrow.worker.idle, 2)
    assert works(narrow)
    for client in clients:
        client.close()


def test_answers_that_are_not_read_to_their_end_are_closed_too(narrow):
    """What is left is too little to stop the writer."""
    narrow.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with slow(narrow, {**LARGE, "max_tokens": 20, "logprobs": 5}):
        until(lambda: connections(narrow) == 1)
        until(lambda: connections(narrow) == 0, 10)
    assert works(narrow)


@pytest.mark.slow
def test_a_client_that_reads_slowly_gets_its_whole_answer(narrow):
    kind = narrow.server.config.http_protocol_class
    kind.head_seconds, kind.read_seconds = 30.0, 1.5
    with slow(narrow, {**LARGE, "stream": True}) as client:
        client.settimeout(10)
        received, start = b"", time.monotonic()
        while b"[DONE]" not in received[-100:]:
            received += client.recv(1 << 16)
            if time.monotonic() < start + 4:
                time.sleep(0.01)
        assert received.count(b"data: {") >= 2000
