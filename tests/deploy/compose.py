"""Reads a compose file as `docker compose config` would, as far as ours goes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def interpolated(text: str, given: Mapping[str, str]) -> str:
    """With the values of variables, or their defaults.

    Raises:
        KeyError: a variable that has to be set is not.
    """

    def value(found: re.Match[str]) -> str:
        name, kind, default = found.groups()
        if name in given:
            return given[name]
        if kind != "-":
            raise KeyError(name)
        return default

    return VARIABLE.sub(value, text)


def read(path: Path, given: Mapping[str, str]) -> dict[str, Any]:
    """The services and the rest; extension fields (x-...) are left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    content = yaml.safe_load(interpolated("\n".join(lines), given))
    return {name: value for name, value in content.items() if not name.startswith("x-")}


def problems(compose: Mapping[str, Any], folder: Path) -> list[str]:
    """What of a compose file is not right, each as a sentence."""
    wrong = []
    for name, service in compose["services"].items():
        wrong += [f"{name}: {problem}" for problem in _of_service(service, compose, folder)]
    for kind in ("configs", "secrets"):
        for name, one in compose.get(kind, {}).items():
            if kind == "configs" and not (folder / one["file"]).is_file():
                wrong.append(f"{kind}.{name}: there is no file {one['file']}")
    return wrong


def _of_service(service: Mapping[str, Any], compose: Mapping[str, Any], folder: Path) -> list[str]:
    wrong = []
    tag = service["image"].rpartition("/")[2].partition(":")[2]
    if not re.search(r"\d+\.\d+", tag):
        wrong.append(f"{service['image']} is not pinned")
    for kind in ("configs", "secrets"):
        names = [
            one["source"] if isinstance(one, Mapping) else one for one in service.get(kind, ())
        ]
        wrong += [f"no {kind} {one}" for one in names if one not in compose.get(kind, {})]
    wrong += [f"no service {one}" for one in service.get("depends_on", ()) if one not in
              compose["services"]]  # fmt: skip
    for volume in service.get("volumes", ()):
        source = volume.split(":")[0]
        if (
            source.startswith("./grafana")
            or source.startswith("./prom")
            or source == "./alerts.yml"
        ):
            if not (folder / source).exists():
                wrong.append(f"there is no {source}")
        elif not source.startswith((".", "/")) and source not in compose.get("volumes", {}):
            wrong.append(f"no volume {source}")
    for port in service.get("ports", ()):
        if not port.startswith("127.0.0.1:"):
            wrong.append(f"port {port} is open to the network")
    if service.get("privileged") or service.get("network_mode") == "host":
        wrong.append("it has rights of the host")
    return wrong
