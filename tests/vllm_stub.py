"""A server in the form of vLLM, whose model is one of the test."""

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from stub_server import StubServer

from culm import endpoint
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.transformer import Transformer


class VLLM:
    """Answers `/v1/completions` for a model of bytes.

    change: gives the answer, or a status, from the answer that vLLM would give. refusals: statuses
    before the next answer. posted: requests to other paths.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.bodies: list[dict] = []
        self.keys: list[str | None] = []
        self.posted: list[tuple[str, dict]] = []
        self.on_post: Callable[[str, dict], Any] = lambda path, body: {}
        self.refusals: list[int] = []
        self.change: Callable[[dict], Any] = lambda answer: answer
        self._lock = threading.Lock()  # an engine has one caller
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.keys.append(self.headers.get("Authorization"))
                found = stub.answer(self.path, body)
                status, found = (found, {}) if isinstance(found, int) else (200, found)
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None: ...

        self.server = StubServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.server.server_port}"
        self.url = f"{self.root}/v1"
        serve = partial(self.server.serve_forever, poll_interval=0.01)
        threading.Thread(target=serve, daemon=True).start()

    def answer(self, path: str, body: dict) -> Any:
        if path != "/v1/completions":
            self.posted.append((path, body))
            return self.on_post(path, body)
        with self._lock:
            self.bodies.append(body)
            if self.refusals:
                return self.refusals.pop(0)
            return self.change(self._completion(body))

    def _completion(self, body: dict) -> dict:
        assert (body["top_p"], body["top_k"], body["min_p"]) == (1, -1, 0)
        sampling = Sampling(temperature=body["temperature"], seed=body["seed"])
        stops = frozenset(body["stop_token_ids"])
        prompt = tuple(body["prompt"])
        request = Request(prompt, body["max_tokens"], sampling, stops, logprobs=0)
        events = Engine(self.model, 1, len(prompt) + body["max_tokens"])
        events.add(request)
        found = []
        while events.busy:
            found += events.step()
        tokens = [event.token for event in found]
        logprobs = [event.top[0][1] for event in found]
        names = [f"token_id:{token}" for token in tokens]
        given = {
            "text_offset": [0] * len(tokens), "token_logprobs": logprobs, "tokens": names,
            "top_logprobs": [{name: one} for name, one in zip(names, logprobs, strict=True)],
        }  # fmt: skip
        stopped = found[-1].finish == "stop"
        choice = {
            "index": 0, "text": "".join(map(chr, tokens)), "logprobs": given,
            "finish_reason": found[-1].finish, "stop_reason": tokens[-1] if stopped else None,
            "prompt_logprobs": None, "prompt_token_ids": list(prompt), "token_ids": tokens,
        }  # fmt: skip
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)}
        return {"object": "text_completion", "choices": [choice], "usage": usage}

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Transformer], VLLM]]:
    """`serving(model)`: a server for the duration of a test; attempts follow without a delay."""
    monkeypatch.setattr(endpoint, "DELAY", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers: list[VLLM] = []

    def start(model: Transformer) -> VLLM:
        servers.append(VLLM(model))
        return servers[-1]

    yield start
    for one in servers:
        one.stop()
