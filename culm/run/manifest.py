"""`manifest.json`: what each start of a run was made with, to tell later why two runs differ."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from culm.atomic import atomic
from culm.config import SettingError
from culm.device import memory_bytes
from culm.files import read_json, write_json
from culm.log import say
from culm.run.assemble import Assembly
from culm.train.checkpoint.folder import Progress
from culm.train.run_folder import MANIFEST

PACKAGES = ("culm", "torch", "numpy", "safetensors", "tokenizers", "transformers")


def record_start(run: Assembly, start: Progress, flops_per_token: float | None) -> None:
    """Add this start to the manifest of a run; say which versions changed since the one before.

    flops_per_token: that the model needs; None: unknown.
    """
    path = run.folder / MANIFEST
    try:
        starts = list(read_json(path).get("starts", [])) if path.exists() else []
    except SettingError:  # damaged: what it said is lost, and the run does not need it
        starts = []
    now = {**_facts(run, start), "flops_per_token": flops_per_token}
    if starts and start.step:
        _say_changes(starts[-1], now)
    with atomic(path) as fresh:
        write_json(fresh, {"starts": [*starts, now]})


def _facts(run: Assembly, start: Progress) -> dict[str, Any]:
    config = run.config
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": start.step,
        "seed": config.seed,
        "deterministic": config.deterministic,
        "data": start.data,
        "reads": dict(start.reads),
        "versions": _versions(),
        "git": _git(Path(__file__).parent),
        "hardware": _hardware(run.device),
        "ranks": run.ranks.processes,
        "host": socket.gethostname(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"cuda": torch.version.cuda} if torch.version.cuda else found


def _hardware(device: torch.device) -> dict[str, Any]:
    memory = memory_bytes(device)
    found = {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_memory_bytes": memory,
    }
    if device.type == "cuda":
        found["device_name"] = torch.cuda.get_device_name(device)
        found["devices"] = torch.cuda.device_count()
    return found


def _git(folder: Path) -> dict[str, Any] | None:
    """The commit of the code, and whether files differ from it; None outside a repository."""

    def ask(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changed = ask("rev-parse", "HEAD"), ask("status", "--porcelain", "--", ".")
    tracked = ask("ls-files", "--error-unmatch", "--", str(Path(__file__)))
    if commit is None or tracked is None:  # also a package that lies in somebody's repository
        return None
    return {"commit": commit, "changed": bool(changed)}


def _say_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    was, versions = then.get("versions", {}), now["versions"]
    changed = [
        f"{name} {was.get(name, 'none')} then, {versions.get(name, 'none')} now"
        for name in dict.fromkeys([*was, *versions])
        if was.get(name) != versions.get(name)
    ]
    before, after = (str((one.get("git") or {}).get("commit", "")) for one in (then, now))
    if before and after and before != after:
        changed.append(f"code {before[:12]} then, {after[:12]} now")
    if changed:
        say(
            f"The run was started with other versions ({'; '.join(changed)}): from here on its "
            "numbers may differ in rounding from those it would have had."
        )
