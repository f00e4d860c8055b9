"""Ray Serve and SkyPilot: replicas on a local cluster, and a file that names what there is."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest
import yaml
from processes import answers, free_port, python

from culm.convert import native
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.tokenizer.bytes import Bytes

DEPLOY = Path(__file__).parents[2] / "deploy"

# The application as `serve run` starts it, with a port and a size of the test.
CLUSTER = """
import sys
import ray
from ray import serve
from culm.serve.ray import build

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(build({"cpus": "0.5", "replicas": "2", "least": "2"}))
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""
KEY = {"Authorization": "Bearer secret"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    words = Bytes(specials=True).build()
    config = TransformerConfig(
        vocabulary=words.vocabulary, width=32, layers=1, context=2048, attention=(GQA(heads=2),)
    )
    native.save(config.build(seed=0), words, tmp_path / "fox")
    return tmp_path / "fox"


@pytest.fixture
def url(model: Path) -> Iterator[str]:
    """Of two replicas on a local cluster."""
    pytest.importorskip("ray.serve")
    port = free_port()
    given = {"CULM_MODEL": str(model), "CULM_API_KEY": "secret", "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(port)],
        env={**os.environ, **given}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert any(line.strip() == "ready" for line in process.stdout)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def replicas(model: Path) -> list[int]:
    """Their processes."""
    found = subprocess.run(
        ["pgrep", "-f", "^ray::ServeReplica:default:Replica"], capture_output=True, text=True
    )
    variable = f"CULM_MODEL={model}\0".encode()
    return [
        int(one) for one in found.stdout.split()
        if variable in Path(f"/proc/{one}/environ").read_bytes()
    ]  # fmt: skip


def ask(url: str, prompt: str, **more: object) -> httpx.Response:
    body = {"model": "fox", "prompt": prompt, "max_tokens": 5, "ignore_eos": True, **more}
    return httpx.post(f"{url}/v1/completions", json=body, headers=KEY, timeout=60)


@pytest.mark.slow
def test_replicas_on_a_local_cluster(url: str) -> None:
    assert httpx.get(f"{url}/health/ready").status_code == 200
    body = {"model": "fox", "prompt": "a", "max_tokens": 5, "ignore_eos": True}
    assert httpx.post(f"{url}/v1/completions", json=body).status_code == 401
    answer = ask(url, "a")
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 5
    stream = {**body, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=stream, headers=KEY) as pieces:
        lines = [line for line in pieces.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    for streamed in (False, True):
        refused = ask(url, "a", max_tokens=-1, stream=streamed)
        assert (refused.status_code, "max_tokens" in refused.text) == (400, True)
    assert httpx.get(f"{url}/nothing", headers=KEY).status_code == 404
    assert "vllm:num_requests_waiting" in httpx.get(f"{url}/metrics", headers=KEY).text


@pytest.mark.slow
def test_dialogues_stay_with_the_replica_that_has_read_them(url: str) -> None:
    """Eight dialogues of growing length in random turns; each replica has room for all."""
    chance, turns = random.Random(0), [n for n in range(8) for _ in range(4)]
    chance.shuffle(turns)
    texts = {n: f"{n} " + "".join(chance.choices("abcdefgh ", k=300)) for n in range(8)}
    seen = set[int]()
    for number in turns:
        usage = ask(url, texts[number]).json()["usage"]
        known = usage["prompt_tokens_details"]["cached_tokens"]
        assert (known > 200) == (number in seen), (number, usage)
        seen.add(number)
        texts[number] += "".join(chance.choices("abcdefgh ", k=100))


@pytest.mark.slow
def test_a_killed_replica_loses_no_request_in_silence(url: str, model: Path) -> None:
    before = replicas(model)
    assert len(before) == 2
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(ask, url, f"{n} " * 200, max_tokens=1200) for n in range(12)]
        time.sleep(1.5)
        os.kill(before[0], signal.SIGKILL)
        answers = [one.result() for one in waiting]
    for answer in answers:
        if answer.status_code == 200:
            assert answer.json()["usage"]["completion_tokens"] == 1200
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (502, "replica_lost")
    assert sum(answer.status_code == 200 for answer in answers) >= 6
    assert ask(url, "after").status_code == 200


def test_skypilot_names_what_the_server_has(model: Path) -> None:
    """Its line starts the server with its variables; its probe and its port are the server's."""
    task = yaml.safe_load((DEPLOY / "skypilot" / "serve.yaml").read_text())
    assert task["envs"].keys() | task["secrets"].keys() == {"CULM_MODEL", "CULM_API_KEY"}
    *variables, program, flag, module = shlex.split(task["run"])
    assert (program, flag, module) == ("python", "-m", "culm.serve.asgi")
    assert variables == [f"PORT={task['resources']['ports']}"]
    port = free_port()
    given = {"CULM_MODEL": str(model), "CULM_API_KEY": "secret", "PORT": str(port)}
    probe = f"http://127.0.0.1:{port}{task['service']['readiness_probe']['path']}"
    with python(["-m", module], lambda: answers(probe), given):
        pass


def test_skypilot_reads_the_file() -> None:
    sky = pytest.importorskip("sky")
    task = sky.Task.from_yaml(str(DEPLOY / "skypilot" / "serve.yaml"))
    assert task.service is not None
