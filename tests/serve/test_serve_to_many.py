"""The settings in docs/recipes/serve_to_many.md: nginx before two replicas."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
import yaml
from openai import OpenAI
from reciter import until

PAGE = Path(__file__).parents[2] / "docs" / "recipes" / "serve_to_many.md"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
WORDS = " ".join(f"word{n}" for n in range(60))
SCRIPT = f"seconds_per_token: 0.02\nanswers:\n  - say: {WORDS}\n"
ASK = {"model": "fixture", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 500}
HOST = "chat.example.org"


def block(title: str) -> str:
    return re.search(rf'^```\w+ title="{title}"\n(.*?)^```', PAGE.read_text(), re.M | re.S)[1]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def running(command: list[str], **settings):
    process = subprocess.Popen(command, **settings)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def proxied(tmp_path_factory):
    """Two replicas and nginx before them, without TLS: its URL and the replicas."""
    folder = tmp_path_factory.mktemp("proxied")
    ports = [free_port() for _ in range(3)]
    (folder / "key").write_text("secret")
    (folder / "script.yaml").write_text(SCRIPT)
    settings = yaml.safe_load(block("serve.yaml"))
    settings["keys"][0]["file"] = str(folder / "key")
    (folder / "serve.yaml").write_text(yaml.safe_dump(settings))
    server = block("/etc/nginx/conf.d/culm.conf")
    for old, new in (
        ("127.0.0.1:8001", f"127.0.0.1:{ports[1]}"), ("127.0.0.1:8002", f"127.0.0.1:{ports[2]}"),
        ("listen 443 ssl", f"listen 127.0.0.1:{ports[0]}"),
        ("    hash $http_authorization consistent;\n", ""),  # one key here, and both replicas
    ):  # fmt: skip
        assert old in server
        server = server.replace(old, new)
    server = re.sub(r"\n *ssl_certificate\w* .*;", "", server)
    (folder / "nginx.conf").write_text(
        f"pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b;\n"
        f"fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;\n"
        f"{server} }}\n"
    )
    serve = [
        *(sys.executable, "-m", "culm", "serve", "--fixture", str(folder / "script.yaml")),
        *("--config", str(folder / "serve.yaml"), "--port"),
    ]
    with ExitStack() as stack:
        replicas = [stack.enter_context(running([*serve, str(port)])) for port in ports[1:]]
        for port in ports[1:]:
            until(partial(answers, f"http://127.0.0.1:{port}/health/ready"), 100)
        front = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
        stack.enter_context(running(front, stderr=subprocess.DEVNULL))
        url = f"http://127.0.0.1:{ports[0]}"
        until(lambda: answers(f"{url}/health/ready"), 30)
        yield url, replicas


def client_of(url: str, key: str = "secret", host: str = HOST) -> OpenAI:
    return OpenAI(
        base_url=f"{url}/v1",
        api_key=key,
        max_retries=0,
        timeout=100,
        default_headers={"Host": host},
    )


needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@needs_nginx
@pytest.mark.slow
def test_pieces_come_one_by_one_and_keys_and_hosts_are_checked(proxied):
    url, _ = proxied
    start, times, text = time.monotonic(), [], ""
    for piece in client_of(url).chat.completions.create(**ASK, stream=True):
        times.append(time.monotonic() - start)
        text += piece.choices[0].delta.content or ""
    assert text == WORDS
    assert times[2] < times[-1] / 3
    assert len({round(t, 1) for t in times}) > 5
    with pytest.raises(openai.AuthenticationError):
        client_of(url, key="other").chat.completions.create(**ASK)
    with pytest.raises(openai.APIStatusError) as found:
        client_of(url, host="evil.example").chat.completions.create(**ASK)
    assert found.value.status_code in (403, 421)


@needs_nginx
@pytest.mark.slow
def test_no_request_is_lost_without_an_error_when_a_replica_is_killed(proxied):
    url, replicas = proxied
    client, outcomes = client_of(url), Counter()

    def ask(n: int) -> None:
        try:
            if n % 2:
                pieces = client.chat.completions.create(**ASK, stream=True)
                found = [piece.choices[0] for piece in pieces]
                text = "".join(one.delta.content or "" for one in found)
                whole = found[-1].finish_reason == "stop"
            else:
                choice = client.chat.completions.create(**ASK).choices[0]
                text, whole = choice.message.content, choice.finish_reason == "stop"
            outcomes["right" if whole and text == WORDS else "cut in silence"] += 1
        except (openai.APIError, httpx.TransportError) as error:
            outcomes[type(error).__name__] += 1

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    until(lambda: min(running_requests(url) for _ in range(4)) >= 4, 60)  # on both
    replicas[0].send_signal(signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert outcomes["cut in silence"] == 0
    assert outcomes["right"] >= 6  # those of the other replica
    assert outcomes.total() == 12
    outcomes.clear()
    for n in range(4):  # the dead replica is skipped
        ask(n)
    assert outcomes == {"right": 4}


def running_requests(url: str) -> float:
    """Of one replica."""
    headers = {"Host": HOST, "Authorization": "Bearer secret"}
    found = httpx.get(f"{url}/metrics", headers=headers).text
    return float(re.search(r"^vllm:num_requests_running(?:{.*})? (\S+)$", found, re.M)[1])
