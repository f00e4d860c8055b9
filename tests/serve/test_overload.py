"""Many more clients than the server has room for."""

import asyncio
import resource
import socket
from collections import Counter

import httpx2 as httpx
import pytest
from reciter import TEXT, Running, until

ASK = {"model": "reciter", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


@pytest.fixture
def server():
    running = Running(slots=2, waiting=6)
    yield running
    running.stop()


def works(server: Running) -> bool:
    answer = server.client().chat.completions.create(**ASK)
    return answer.choices[0].message.content == TEXT


@pytest.mark.slow
def test_ten_thousand_silent_connections(server):
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(10_000, soft - 3000)
    most = server.server.config.http_protocol_class.max_connections
    sockets = []
    try:
        for number in range(count):
            sockets.append(socket.create_connection(server.listener.getsockname(), 20))
            if number % 1000 == 999:
                assert httpx.get(server.url + "/health").status_code == 200
        assert len(server.server.server_state.connections) <= most + 1
        assert works(server)
    finally:
        for one in sockets:
            one.close()


async def flood(server: Running, clients: int, rounds: int) -> Counter[str]:
    """What clients that ask all at once get; a third of them leave in the middle."""
    counts: Counter[str] = Counter()
    limits = httpx.Limits(max_connections=None)

    async def one(client: httpx.AsyncClient, number: int) -> None:
        body = {**ASK, "stream": number % 2 == 0, "max_tokens": 60, "ignore_eos": True}
        async with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
            if answer.status_code == 200 and number % 3 == 0:
                counts["left"] += 1
                return
            text = (await answer.aread()).decode()
            counts[str(answer.status_code)] += 1
            if answer.status_code == 503:
                assert answer.headers["retry-after"] == "2"
            elif body["stream"]:
                assert text.endswith("data: [DONE]\n\n")

    async with httpx.AsyncClient(limits=limits, timeout=60) as client:
        for _ in range(rounds):
            await asyncio.gather(*(one(client, number) for number in range(clients)))
    return counts


def test_five_times_too_many_clients_are_refused_and_the_others_served(server):
    counts = asyncio.run(flood(server, 5 * server.worker.capacity, 3))
    assert set(counts) == {"200", "503", "left"}
    assert counts["200"] >= 3
    until(lambda: server.worker.idle and not server.worker._engine.busy)
    assert httpx.get(server.url + "/health").status_code == 200
    assert works(server)
