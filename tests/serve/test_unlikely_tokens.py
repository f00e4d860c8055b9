"""Tokens that are never sampled have a log-probability of minus infinity, which JSON has not."""

import httpx2 as httpx
import pytest
from reciter import Running, reciter

from culm.serve.http.app import build


@pytest.fixture(scope="module")
def server():
    """The engine may sample 12 of the tokens only, and a client asks for 20."""
    running = Running(build(reciter(), "reciter"))
    running.worker._engine.chooser.vocabulary = 12
    yield running
    running.stop()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": "A", "logprobs": 20}),
        (
            "chat/completions",
            {
                "messages": [{"role": "user", "content": "x"}], "logprobs": True,
                "top_logprobs": 20,
            },
        ),
    ],
)  # fmt: skip
def test_no_infinity_reaches_a_client(server, path, body, stream):
    asked = {"model": "reciter", "max_tokens": 2, "stream": stream, **body}
    answer = httpx.post(f"{server.url}/v1/{path}", json=asked)
    assert answer.status_code == 200
    assert "Infinity" not in answer.text
    assert "-9999.0" in answer.text
