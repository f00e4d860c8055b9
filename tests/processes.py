"""Processes that tests start and ask over HTTP."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import httpx2 as httpx


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.1)


def answers(url: str) -> bool:
    """Whether a server gives status 200 there."""
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def python(
    arguments: Sequence[str], ready: Callable[[], bool], variables: Mapping[str, str] = {}
) -> Iterator[subprocess.Popen]:
    """A process of this Python, from when it is ready; it is killed at the end if it still runs."""
    process = subprocess.Popen([sys.executable, *arguments], env={**os.environ, **variables})
    try:
        until(lambda: process.poll() is not None or ready())
        assert process.poll() is None, "it has ended"
        yield process
    finally:
        process.kill()
        process.wait()
