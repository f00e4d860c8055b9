"""The manifests: valid by Kubernetes' own schemas, and right for the server and the image."""

import copy
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_rules import stages
from test_docker import exposed

from culm.engine.engine import Engine
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.serve.metrics import Metrics
from culm.serve.settings import ServeConfig
from culm.verbs.launch import launch_run

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
KUBECTL = shutil.which("kubectl")
VERSION = "1.34"  # preStop.sleep is on by default from 1.30 on
OWN_KINDS = {"PodMonitor", "JobSet"}  # of operators, which Kubernetes has no schemas for


def built(folder: Path) -> list[dict[str, Any]]:
    """What kustomize makes of a folder, without the hashes of its names."""
    given = yaml.safe_load((folder / "kustomization.yaml").read_text())
    known = {"apiVersion", "kind", "resources", "configMapGenerator", "images"}
    assert given.keys() <= known
    found: list[dict[str, Any]] = []
    for name in given["resources"]:
        place = folder / name
        found += built(place) if place.is_dir() else list(yaml.safe_load_all(place.read_text()))
    for one in given.get("configMapGenerator", ()):
        data = {Path(name).name: (folder / name).read_text() for name in one["files"]}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "data": data,
                      "metadata": {"name": one["name"]}})  # fmt: skip
    tags = {one["name"]: one["newTag"] for one in given.get("images", ())}
    for container in _containers(found):
        if container["image"] in tags:
            container["image"] += f":{tags[container['image']]}"
    return found


def _containers(manifests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in manifests:
        template = one.get("spec", {}).get("template")
        if template is not None:
            yield from template["spec"]["containers"]


def of_kind(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    [found] = [one for one in manifests if one["kind"] == kind]
    return found


@pytest.fixture
def manifests() -> list[dict[str, Any]]:
    return built(KUBERNETES / "autoscale")


@pytest.fixture
def jobset() -> dict[str, Any]:
    return yaml.safe_load((KUBERNETES / "train" / "jobset.yaml").read_text())


def valid(manifest: Mapping[str, Any]) -> None:
    """By Kubernetes' schema, without fields that it does not know."""
    validator = pytest.importorskip("kubernetes_validate")
    validator.validate(dict(manifest), VERSION, strict=True)


@pytest.mark.slow
def test_the_manifests_are_valid(manifests, jobset) -> None:
    kinds = {one["kind"] for one in manifests}
    assert kinds == {
        "Deployment", "Service", "ConfigMap", "PodDisruptionBudget", "NetworkPolicy",
        "HorizontalPodAutoscaler", "PodMonitor",
    }  # fmt: skip
    for manifest in manifests:
        if manifest["kind"] not in OWN_KINDS:
            valid(manifest)
    valid(yaml.safe_load((KUBERNETES / "train" / "claim.yaml").read_text()))
    for job in jobset["spec"]["replicatedJobs"]:  # each is the template of a Job
        named = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}}
        valid({**named, **job["template"]})


@pytest.mark.slow
@pytest.mark.parametrize("change", ["probe", "unknown field", "type"])
def test_the_validator_can_fail(change: str, manifests) -> None:
    pytest.importorskip("kubernetes_validate")
    deployment = copy.deepcopy(of_kind(manifests, "Deployment"))
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    match change:
        case "probe":
            container["readinessProbe"]["httpGet"] = {"path": "/"}
        case "unknown field":
            container["securityContexts"] = {}
        case "type":
            deployment["spec"]["replicas"] = "two"
    with pytest.raises(Exception, match=r".+"):
        valid(deployment)


@pytest.mark.slow
@pytest.mark.skipif(KUBECTL is None, reason="needs kubectl")
@pytest.mark.parametrize("folder", ["serve", "autoscale"])
def test_kustomize_makes_the_same(folder: str) -> None:
    line = [str(KUBECTL), "kustomize", str(KUBERNETES / folder)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = re.sub(r"\bculm-[a-z0-9]{10}\b", "culm", done.stdout)  # the hash of the ConfigMap
    theirs = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text)}
    ours = {(one["kind"], one["metadata"]["name"]): one for one in built(KUBERNETES / folder)}
    assert theirs == ours


def test_the_pod_is_right_for_the_server(manifests) -> None:
    settings = ServeConfig(**yaml.safe_load(of_kind(manifests, "ConfigMap")["data"]["serve.yaml"]))
    pod = of_kind(manifests, "Deployment")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    [port] = container["ports"]
    assert port["containerPort"] == settings.port
    paused = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > settings.drain_seconds + paused
    paths = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness")}
    assert paths == {"/health/ready"}
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    verb, model, option, config = container["args"]
    assert (verb, option) == ("serve", "--config")
    assert config == f"{mounts['settings']}/serve.yaml"
    assert model.startswith(mounts["models"])
    assert settings.keys[0].file == f"{mounts['keys']}/web"


def test_the_pod_has_few_rights(manifests) -> None:
    pod = of_kind(manifests, "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 1000
    assert pod["automountServiceAccountToken"] is False
    [container] = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert re.fullmatch(r"culm:\d+\.\d+\.\d+", container["image"])
    image = (KUBERNETES.parent / "docker" / "Dockerfile").read_text()
    written = {
        mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")
    }
    [base] = [stage for stage in stages(image)[1] if stage.name == "base"]
    assert "XDG_CACHE_HOME=/cache" in " ".join(base.all("ENV"))
    assert written == {"/tmp", "/cache"}


def test_all_select_the_same_pods(manifests) -> None:
    deployment = of_kind(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert of_kind(manifests, "Service")["spec"]["selector"] == labels
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        assert of_kind(manifests, kind)["spec"]["selector"]["matchLabels"] == labels
    policy = of_kind(manifests, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    [rule] = policy["ingress"]
    names = {port["port"] for port in rule["ports"]}
    [endpoint] = of_kind(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"]
    service = of_kind(manifests, "Service")["spec"]["ports"][0]["targetPort"]
    [port] = deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert names == {endpoint["port"]} == {service} == {port["name"]}
    secret = deployment["spec"]["template"]["spec"]["volumes"][2]["secret"]["secretName"]
    assert endpoint["authorization"]["credentials"] == {"name": secret, "key": "web"}


def test_it_scales_by_a_metric_that_there_is(manifests) -> None:
    scaler = of_kind(manifests, "HorizontalPodAutoscaler")["spec"]
    target = of_kind(manifests, "Deployment")
    assert scaler["scaleTargetRef"]["name"] == target["metadata"]["name"]
    assert scaler["minReplicas"] == target["spec"]["replicas"] < scaler["maxReplicas"]
    values = yaml.safe_load((KUBERNETES / "autoscale" / "prometheus-adapter.yaml").read_text())
    [rule] = values["rules"]["custom"]
    assert rule["name"]["as"] == scaler["metrics"][0]["pods"]["metric"]["name"]
    series = rule["seriesQuery"].partition("{")[0]
    assert re.fullmatch(rule["name"]["matches"], series)
    config = TransformerConfig(vocabulary=32, width=16, layers=1, attention=(GQA(heads=2),))
    metrics = Metrics("fox", Engine(config.build(seed=0).eval(), 1))
    assert series in exposed(metrics.text().decode())[0]


def test_training_is_what_launch_writes(jobset, tmp_path: Path, monkeypatch) -> None:
    """The file is the output of the command on the page, which shows it."""
    page = (KUBERNETES.parents[1] / "docs" / "recipes" / "kubernetes.md").read_text()
    assert "culm launch 7b --ranks 8 --nodes 2 --image culm:0.1.0-cuda --for kubernetes" in page
    out = tmp_path / "jobset.yaml"
    launch_run("7b", [], 8, 2, 3, "kubernetes", "culm:0.1.0-cuda", str(out))
    assert out.read_text() == (KUBERNETES / "train" / "jobset.yaml").read_text()
    assert jobset.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    fields = {"replicatedJobs", "failurePolicy", "successPolicy", "network", "suspend"}
    assert jobset["spec"].keys() <= fields
    [job] = jobset["spec"]["replicatedJobs"]
    assert job.keys() <= {"name", "replicas", "template", "dependsOn", "groupName"}
    pod = job["template"]["spec"]["template"]["spec"]
    claims = {one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"]
              if "persistentVolumeClaim" in one}  # fmt: skip
    claim = yaml.safe_load((KUBERNETES / "train" / "claim.yaml").read_text())
    assert claims == {claim["metadata"]["name"]}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
