"""Clients that leave: what they asked for ends within two seconds, wherever it stands."""

import json
import random
import socket
import time

import pytest
from reciter import CONTEXT, until

HI = [{"role": "user", "content": "hi"}]
LONG = {"model": "reciter", "ignore_eos": True, "max_tokens": CONTEXT - 100}
ASKED = {
    "chat": ("chat/completions", {**LONG, "messages": HI}),
    "stream": ("chat/completions", {**LONG, "messages": HI, "stream": True}),
    "choices": ("completions", {**LONG, "prompt": ["A", "B"], "n": 2, "logprobs": 1}),
    "scores": ("completions", {
        **LONG, "prompt": [[65] * 1900] * 4, "max_tokens": 1, "echo": True, "logprobs": 1,
    }),
    "scored stream": ("completions", {
        **LONG, "prompt": [[65] * 1900] * 4, "max_tokens": 0, "echo": True, "logprobs": 1,
        "stream": True,
    }),
}  # fmt: skip


def send(running, path: str, body: object) -> socket.socket:
    return running.sent(f"/v1/{path}", json.dumps(body).encode())


def is_free(running) -> bool:
    worker = running.worker
    return worker.idle and not worker._engine.busy and not worker.thread.readings


@pytest.mark.parametrize("kind", ASKED)
def test_clients_that_are_killed(running, kind):
    """At moments that fall before, in and after each part of a request."""
    moment = random.Random(kind)
    for _ in range(12):
        clients = [send(running, *ASKED[kind]) for _ in range(2)]
        time.sleep(moment.uniform(0, 0.05))
        for client in clients:
            client.close()
        until(lambda: is_free(running), 2)


@pytest.mark.parametrize("kind", ASKED)
def test_clients_that_leave_the_queue(running, kind):
    """No event of theirs shows that they are gone."""
    busy = [send(running, *ASKED["chat"]) for _ in range(3)]
    until(lambda: running.worker.open == 3)
    waits = send(running, *ASKED[kind])
    until(lambda: running.worker.open > 3)
    waits.close()
    until(lambda: running.worker.open <= 3, 2)
    for client in busy:
        client.close()
    until(lambda: is_free(running), 2)
