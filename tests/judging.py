"""A server that judges by a function, in place of a language model."""

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from stub_server import StubServer

from culm import endpoint


class Stub:
    """A server with the chat API. reply: gives a text, a status, a status with the JSON that is
    answered, raw bytes, or waits.
    """

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.keys: list[str | None] = []
        self.reply: Callable[[str], Any] = longer_wins
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(size))
                stub.bodies.append(body)
                stub.keys.append(self.headers.get("Authorization"))
                assert self.path == "/v1/chat/completions"
                found = stub.reply(body["messages"][0]["content"])
                status, headers = 200, {}
                if isinstance(found, str):
                    found = {"choices": [{"message": {"role": "assistant", "content": found}}]}
                if isinstance(found, tuple):
                    status, found = found
                if isinstance(found, int):
                    status, found = found, {"error": {"message": "no such model"}}
                    headers = {"Location": "http://127.0.0.1:9/", "Retry-After": "0"}
                data = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None: ...

        self.server = StubServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        serve = partial(self.server.serve_forever, poll_interval=0.01)
        threading.Thread(target=serve, daemon=True).start()


def parts(prompt: str) -> tuple[str, str]:
    """The two answers in the judge's prompt."""
    first, second = (prompt.split(f"<answer_{x}>\n")[1].split("\n</")[0] for x in "ab")
    return first, second


def longer_wins(prompt: str) -> str:
    first, second = parts(prompt)
    mark = "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return f"One might think of [[B]], but my verdict is [[{mark}]]"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setattr(endpoint, "DELAY", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = Stub()
    yield found
    found.server.shutdown()
    found.server.server_close()
