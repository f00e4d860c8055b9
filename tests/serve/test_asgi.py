"""The application as hosts start it: all settings from the environment."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import httpx2 as httpx
import pytest
from processes import answers, free_port, python

from culm.config import SettingError
from culm.convert import native
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.serve.asgi import app, settings_of
from culm.tokenizer.bytes import Bytes

KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("asgi") / "fox"
    words = Bytes(specials=True).build()
    config = TransformerConfig(
        vocabulary=words.vocabulary, width=32, layers=1, context=128, attention=(GQA(heads=2),)
    )
    native.save(config.build(seed=0), words, folder)
    return folder


def test_the_settings(tmp_path: Path) -> None:
    given = {"CULM_MODEL": "fox", "CULM_API_KEY": "secret"}
    model, settings, clients = settings_of(given)
    assert (model, settings.host, settings.port) == ("fox", "0.0.0.0", 8080)
    assert clients.find(b"secret")
    assert clients.find(b"other") is None
    file = tmp_path / "serve.yaml"
    file.write_text("host: 0.0.0.0\nslots: 2\nkeys: [{name: web, env: CULM_API_KEY}]\n")
    os.environ["CULM_API_KEY"] = "secret"
    try:
        _, settings, clients = settings_of({**given, "CULM_SERVE_CONFIG": str(file), "PORT": "99"})
    finally:
        del os.environ["CULM_API_KEY"]
    assert (settings.port, settings.slots) == (99, 2)
    assert clients.find(b"secret")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "CULM_MODEL: set it to a run or model folder"),
        ({"CULM_MODEL": "fox"}, "open to the network"),
        ({"CULM_MODEL": "fox", "CULM_API_KEY": "a", "PORT": "http"}, "PORT: 'http' is no number"),
        ({"CULM_MODEL": "fox", "CULM_API_KEY": "a", "PORT": "99999"}, "port"),
    ],
)
def test_what_is_refused(given, words) -> None:
    with pytest.raises(SettingError, match=words):
        settings_of(given)


def test_another_server_gets_the_application(model: Path, monkeypatch) -> None:
    monkeypatch.setenv("CULM_MODEL", str(model))
    monkeypatch.setenv("CULM_API_KEY", "secret")
    made = app()

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(app=made)
        async with (
            made.router.lifespan_context(made),
            httpx.AsyncClient(transport=transport, base_url="http://any.example") as client,
        ):
            body = {"model": "fox", "prompt": "a", "max_tokens": 3}
            found = [
                await client.get("/health/ready"),
                await client.post("/v1/completions", json=body),
            ]
            found.append(await client.post("/v1/completions", json=body, headers=KEY))
            return [answer.status_code for answer in found]

    assert asyncio.run(ask()) == [200, 401, 200]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_process_of_a_container(model: Path) -> None:
    """It streams, and ends with 0 on SIGTERM."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    given = {"CULM_MODEL": str(model), "CULM_API_KEY": "secret", "PORT": str(port)}
    line = ["-m", "culm.serve.asgi"]
    with python(line, lambda: answers(f"{url}/health/ready"), given) as process:
        body = {"model": "fox", "prompt": "a", "max_tokens": 5, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=KEY) as answer:
            lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        assert len(lines) > 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
