"""Faults around the process: it is killed, its log has no room, its clock jumps."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
from openai import OpenAI
from reciter import TEXT, Running, until

# The first step fails, so that there is something to log.
SERVER = """
import sys, reciter
from culm.engine.engine import Engine
from culm.serve.clients import Clients
from culm.serve.http.server import serve
from culm.serve.settings import ServeConfig

step, failed = Engine.step, []

def fails_first(engine):
    if engine.busy and not failed:
        failed.append(True)
        raise RuntimeError("no luck")
    return step(engine)

Engine.step = fails_first
serve(reciter.reciter(), "reciter", ServeConfig(port=int(sys.argv[1])), Clients())
"""
ASK = {"model": "reciter", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


@contextmanager
def serving(port: int, log):
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)], stdout=log, stderr=log,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0, timeout=60)
    try:
        until(lambda: process.poll() is not None or alive(port), 60)
        yield process, client
    finally:
        process.kill()
        process.wait()


def alive(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_without_room_and_a_killed_process():
    """The same port serves again at once, although connections of the old process are open."""
    port = free_port()
    for _ in range(2):
        with open("/dev/full", "w") as log, serving(port, log) as (process, client):
            with pytest.raises(openai.InternalServerError, match="its log says why"):
                client.chat.completions.create(**ASK)
            assert client.chat.completions.create(**ASK).choices[0].message.content == TEXT
            stream = client.chat.completions.create(
                **ASK, stream=True, max_tokens=1900, extra_body={"ignore_eos": True}
            )
            chunks = iter(stream)
            next(chunks)
            process.send_signal(signal.SIGKILL)
            with pytest.raises((openai.APIError, httpx.TransportError)):
                for _ in chunks:
                    pass


def test_a_clock_that_jumps_changes_no_answer(monkeypatch):
    """Limits on time and shares of clients follow the monotonic clock."""
    server = Running(slots=2, queue_seconds=20, answer_seconds=20)
    jumps = itertools.cycle([0.0, 4e9, -1.7e9, 1e5])
    real = time.time
    monkeypatch.setattr(time, "time", lambda: max(real() + next(jumps), 0.0))
    try:
        for _ in range(4):
            client = server.client()
            answer = client.chat.completions.create(**ASK)
            assert answer.choices[0].message.content == TEXT
            chunks = client.chat.completions.create(**ASK, stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
            assert httpx.get(server.url + "/metrics").status_code == 200
    finally:
        server.stop()
