from collections.abc import Iterator

import pytest
from openai import OpenAI
from reciter import Running


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    server = Running(slots=3, waiting=8)
    yield server
    server.stop()


@pytest.fixture
def client(running) -> OpenAI:
    return running.client()
