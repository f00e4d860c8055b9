"""The server around the API: health, tokens, key, limits, port, page and its end."""

import contextlib
import io
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
from reciter import TEXT, Running, until

import culm
from culm.config import SettingError
from culm.serve.clients import Clients, clients_of
from culm.serve.http.server import check_exposed, check_port, serve
from culm.serve.settings import ServeConfig


def test_health_and_version(running):
    for path in ("/health", "/health/live", "/health/ready"):
        assert httpx.get(running.url + path).json() == {"status": "ok"}
        assert httpx.head(running.url + path).status_code == 200
    assert httpx.get(running.url + "/version").json() == {"version": culm.__version__}


def test_tokenize_and_back(running):
    lines = httpx.post(running.url + "/tokenize", json={"prompt": "né"}).json()
    assert lines == {"count": 3, "max_model_len": 2048, "tokens": [110, 195, 169]}
    back = httpx.post(running.url + "/detokenize", json={"tokens": lines["tokens"]})
    assert back.json() == {"prompt": "né"}
    for wrong in ([9999], [-1], [1 << 80]):
        answer = httpx.post(running.url + "/detokenize", json={"tokens": wrong})
        assert answer.status_code == 400


def test_unknown_paths_and_methods(running):
    missing = httpx.get(running.url + "/v1/nothing")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "not_found"
    wrong = httpx.get(running.url + "/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert wrong.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_another_type_of_body_is_refused(running, kind):
    """A form on another site can send those without the browser asking first."""
    headers = {"content-type": kind} if kind else {}
    answer = httpx.post(running.url + "/tokenize", content=b'{"prompt": "x"}', headers=headers)
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    answer = httpx.post(running.url + "/tokenize", content=b'{"prompt": "x"}', headers=headers)
    assert answer.status_code == 200


def test_bodies_are_bounded(running):
    url = running.url + "/v1/chat/completions"
    assert httpx.post(url, content=b"x" * (5 << 20)).status_code == 413

    def pieces():
        for _ in range(80):
            yield b"x" * (1 << 16)

    assert httpx.post(url, content=pieces()).status_code == 413  # its length is not declared
    far = {"content-length": str(1 << 40)}
    with contextlib.suppress(httpx.TransportError):  # refused unread: the server hangs up
        assert httpx.post(url, content=b"x" * (5 << 20), headers=far).status_code == 413


def test_other_sites_are_refused(running):
    for header in ({"host": "evil.example"}, {"origin": "http://evil.example"}):
        assert httpx.get(running.url + "/v1/models", headers=header).status_code == 403
    port = running.url.rsplit(":")[-1]
    same = {"host": f"localhost:{port}", "origin": f"http://localhost:{port}"}
    assert httpx.get(running.url + "/v1/models", headers=same).status_code == 200


def test_the_page_loads_nothing_else(running):
    assert httpx.head(running.url + "/").status_code == 200
    answer = httpx.get(running.url + "/")
    assert "text/html" in answer.headers["content-type"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for word in ("http://", "https://", "innerHTML", "src="):
        assert word not in answer.text.replace("http://www.w3.org/2000/svg", "")


def test_a_key_closes_all_but_health_and_the_page():
    server = Running(api_key="sésame")
    try:
        for path in ("/", "/health"):
            assert httpx.get(server.url + path).status_code == 200
        for path in ("/v1/models", "/tokenize", "/openapi.json", "/version", "/nothing"):
            answer = httpx.get(server.url + path)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        with pytest.raises(openai.AuthenticationError):
            server.client("sesame").models.list()
        head = {"authorization": "Bearer sésame".encode()}
        assert httpx.get(server.url + "/v1/models", headers=head).status_code == 200
    finally:
        server.stop()


def test_running_answers_finish_before_the_server_ends():
    server = Running()
    ask = {"model": "reciter", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    client = server.client()
    stream = client.chat.completions.create(
        **ask, stream=True, max_tokens=600, extra_body={"ignore_eos": True}
    )
    chunks = iter(stream)
    next(chunks)
    server.server.handle_exit(signal.SIGTERM, None)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**ask)
    assert caught.value.code == "shutting_down"
    assert httpx.get(server.url + "/health/ready").status_code == 503
    rest = list(chunks)
    assert rest[-1].choices[0].finish_reason == "length"
    server.thread.join(10)
    assert not server.thread.is_alive()


def test_a_port_in_use_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=f"port: {port} on 127.0.0.1 is in use; choose"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)
    with pytest.raises(SettingError, match="port: 70000 is outside"):
        check_port("127.0.0.1", 70000)
    with pytest.raises(SettingError, match="host: cannot listen on"):
        check_port("203.0.113.1", 0)


def test_a_server_without_a_key_stays_local():
    with pytest.raises(SettingError, match="--api-key"):
        serve(None, "x", ServeConfig(host="0.0.0.0"), Clients())
    check_exposed("0.0.0.0", clients_of((), "key"))
    check_exposed("::1", Clients())


@pytest.mark.parametrize(
    "sign", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_process_with_zero(sign):
    here = Path(__file__).parent
    code = (
        "import reciter; from culm.serve.clients import Clients;"
        "from culm.serve.http.server import serve; from culm.serve.settings import ServeConfig;"
        "serve(reciter.reciter(), 'r', ServeConfig(port=0), Clients())"
    )
    paths = [str(here.parent), str(here.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")))
    reader.start()
    until(lambda: any("listens on" in line for line in lines) or process.poll() is not None, 40)
    url = next(line for line in lines if "listens on" in line).split("listens on ")[1].split()[0]
    until(lambda: alive(url))
    process.send_signal(sign)
    assert process.wait(15) == 0
    reader.join()
    assert "The server has stopped." in lines[-1]


def alive(url: str) -> bool:
    try:
        return httpx.get(url + "/health").status_code == 200
    except httpx.TransportError:
        return False


def test_a_server_does_not_close_the_logs_of_others():
    """absl's handler, which tensorboard brings, closes the standard error that it has seen."""
    closed = []
    handler = logging.StreamHandler(io.StringIO())
    handler.close = lambda: closed.append(True)
    server = Running()
    server.stop()
    assert not closed
    logging.Handler.close(handler)


def test_the_reciter_recites(running):
    assert Running is type(running)
    assert len(set(TEXT.encode())) == len(TEXT.encode())
