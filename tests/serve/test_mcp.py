"""The model as MCP tools, by the official client: in memory, over HTTP and over pipes."""

import asyncio
import json
import math
import os
import sys
from pathlib import Path

import httpx2 as httpx
import pytest
import torch
from asking import started
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from reciter import TEXT, Running, reciter
from scripted import scripted

from culm.serve.clients import Client as ApiClient
from culm.serve.clients import Clients
from culm.serve.http.app import build
from culm.serve.mcp import server_of
from culm.serve.settings import ServeConfig

HI = [{"role": "user", "content": "hi"}]
NAMES = ["chat", "detokenize", "embed", "generate", "score", "tokenize"]


def told(story):
    """A story of a client in memory and the service that it talks to."""

    async def whole():
        async with started() as service, Client(server_of(service)) as client:
            await asyncio.wait_for(story(client, service), 30)

    asyncio.run(whole())


def test_the_tools_do_what_the_service_does():
    async def story(client, service):
        tools = (await client.list_tools()).tools
        assert sorted(tool.name for tool in tools) == NAMES
        assert all(tool.output_schema and tool.description for tool in tools)
        found = await client.call_tool("chat", {"messages": HI})
        assert found.structured_content["text"] == TEXT
        assert found.structured_content["finish_reason"] == "stop"
        cut = await client.call_tool("generate", {"prompt": "A", "max_tokens": 3})
        assert (cut.structured_content["text"], cut.structured_content["finish_reason"]) == (
            "BCD", "length",
        )  # fmt: skip
        ids = (await client.call_tool("tokenize", {"text": "é"})).structured_content["tokens"]
        assert ids == list("é".encode())
        text = await client.call_tool("detokenize", {"tokens": ids})
        assert text.content[0].text == "é"
        vectors = (await client.call_tool("embed", {"texts": ["a", "b"]})).structured_content
        assert [math.hypot(*one) for one in vectors["vectors"]] == pytest.approx([1, 1])
        card = await client.read_resource("model://card")
        assert json.loads(card.contents[0].text)["name"] == "reciter"

    told(story)


def test_scores_are_those_of_the_model():
    async def story(client, service):
        model = service.model
        found = (
            await client.call_tool("score", {"text": "BCDX", "prompt": "A"})
        ).structured_content
        ids = torch.tensor([[*model.prompt_ids("A"), *b"BCDX"]])
        logprobs = model.model(ids)[0].log_softmax(-1)
        expected = [
            float(logprobs[i - 1, ids[0, i]]) for i in range(ids.shape[1] - 4, ids.shape[1])
        ]
        assert found["logprob"] == pytest.approx(sum(expected), abs=1e-4)
        assert found["tokens"] == 4
        assert found["perplexity"] == pytest.approx(math.exp(-sum(expected) / 4), rel=1e-4)

    told(story)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("generate", {"prompt": ""}),
        ("generate", {"prompt": "x", "max_tokens": 0}),
        ("generate", {"prompt": "x", "temperature": 3}),
        ("generate", {"prompt": "x" * 5000}),
        ("chat", {"messages": []}),
        ("chat", {"messages": [{"role": "king", "content": "x"}]}),
        ("embed", {"texts": ["x"] * 65}),
        ("detokenize", {"tokens": [999_999]}),
        ("score", {"text": "x" * 5000}),
    ],
)
def test_bad_arguments_are_errors_of_the_call(name, arguments):
    async def story(client, service):
        found = await client.call_tool(name, arguments)
        assert found.is_error
        assert service.idle

    told(story)


def test_a_cancelled_call_frees_its_slot():
    async def story(client, service):
        endless = {"messages": HI, "max_tokens": 1900, "temperature": 2.0}
        call = asyncio.ensure_future(client.call_tool("chat", endless))
        while service.idle:
            await asyncio.sleep(0.01)
        call.cancel()
        while not service.idle:
            await asyncio.sleep(0.01)
        assert (await client.call_tool("chat", {"messages": HI})).structured_content["text"] == TEXT

    told(story)


def test_progress_is_told():
    async def story(client, service):
        reports = []

        async def report(progress, total, message):
            reports.append((progress, total))

        await client.call_tool("chat", {"messages": HI, "max_tokens": 80}, progress_callback=report)
        assert [total for _, total in reports] == [80] * len(reports)
        assert 1 < len(reports) <= 3
        assert sorted(reports) == reports

    told(story)


def test_over_http_in_both_eras_with_keys():
    clients = Clients([("secret", ApiClient("a", salt="a"))])
    server = Running(build(reciter(), "reciter", ServeConfig(), clients))
    url = f"{server.url}/mcp"

    async def talk(mode):
        from mcp.client.streamable_http import streamable_http_client

        async with httpx.AsyncClient(headers={"authorization": "Bearer secret"}) as http:
            transport = streamable_http_client(url, http_client=http)
            async with Client(transport, mode=mode) as client:
                found = await client.call_tool("chat", {"messages": HI})
                return found.structured_content["text"]

    try:
        assert [asyncio.run(talk(mode)) for mode in ("auto", "legacy")] == [TEXT, TEXT]
        assert httpx.post(url, json={}).status_code == 401
        rebound = {"authorization": "Bearer secret", "host": "evil.example"}
        assert httpx.post(url, json={}, headers=rebound).status_code == 403
        origin = {"authorization": "Bearer secret", "origin": "http://evil.example"}
        assert httpx.post(url, json={}, headers=origin).status_code == 403
    finally:
        server.stop()


def test_over_pipes(tmp_path):
    script = tmp_path / "script.yaml"
    script.write_text("answers: [{say: '<think>why</think>Hello!'}]")
    root = str(Path(__file__).parents[2])
    command = "import sys; from culm.cli import main; sys.argv[0] = 'culm'; main()"
    server = StdioServerParameters(
        command=sys.executable, args=["-c", command, "mcp", "--fixture", str(script)],
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip

    async def talk():
        async with Client(stdio_client(server)) as client:
            return (await client.call_tool("chat", {"messages": HI})).structured_content

    found = asyncio.run(asyncio.wait_for(talk(), 60))
    assert (found["text"], found["reasoning"]) == ("Hello!", "why")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp.server.transport_security", None)
    with scripted("x") as server:
        answer = httpx.post(f"{server.url}/mcp", json={})
        assert answer.status_code == 501
        assert "culm[mcp]" in answer.json()["error"]["message"]
