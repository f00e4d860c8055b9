"""Ray Serve and SkyPilot: replicas on a local cluster, and a file that names what there is."""

import os
import shlex
import subprocess
import sys
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
import importlib.util, sys, time
import ray
from ray import serve

port, script = int(sys.argv[1]), sys.argv[2]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
serve.start(http_options={"host": "127.0.0.1", "port": port})
found = importlib.util.spec_from_file_location("culm_ray_serve", script)
module = importlib.util.module_from_spec(found)
found.loader.exec_module(module)
serve.run(module.build({"cpus": "0.5", "replicas": "2"}))
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    words = Bytes(specials=True).build()
    config = TransformerConfig(
        vocabulary=words.vocabulary, width=32, layers=1, context=128, attention=(GQA(heads=2),)
    )
    native.save(config.build(seed=0), words, tmp_path / "fox")
    return tmp_path / "fox"


@pytest.mark.slow
def test_replicas_on_a_local_cluster(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.serve")
    port = free_port()
    given = {"CULM_MODEL": str(model), "CULM_API_KEY": "secret", "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(port), str(DEPLOY / "ray" / "serve.py")],
        env={**os.environ, **given}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert any(line.strip() == "ready" for line in process.stdout)
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/health/ready").status_code == 200
        body = {"model": "fox", "prompt": "a", "max_tokens": 5, "ignore_eos": True}
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 401
        key = {"Authorization": "Bearer secret"}
        answer = httpx.post(f"{url}/v1/completions", json=body, headers=key, timeout=60)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 5
        stream = {**body, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=stream, headers=key) as pieces:
            lines = [line for line in pieces.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        assert "vllm:num_requests_waiting" in httpx.get(f"{url}/metrics", headers=key).text
    finally:
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
