"""`culm doctor`: what this machine offers, and whether it computes right."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from rich.console import Console

from culm.device import choose_device, choose_precision, memory_bytes
from culm.sandbox.mechanism import summary
from culm.verbs.doctor_kernels import kernels
from culm.verbs.doctor_numerics import Check, numerics
from culm.verbs.format import size

WIDTH = 27  # of a label
# Extras that a user may want; the others are for developing Culm.
USES = {
    "data": "hub datasets and Parquet files",
    "files": "HTML, PDF, MediaWiki dumps and .zst",
    "remote": "s3:// and https:// paths",
    "ray": "cleaning and tokenising on a Ray cluster",
    "tensorboard": "train.trackers=tensorboard",
    "tokenizers": "SentencePiece, and a faster encoder for byte-level BPE",
    "spacy": "tokenizer.kind=spacy",
    "learn": "the course in Jupyter",
}


def show_doctor(name: str = "auto") -> bool:
    """Print what is installed, what the CPU and a device compute with, and how exact they are.

    Returns whether all results are as exact as they must be.

    Raises:
        SettingError: the device is not available.
    """
    console = Console(highlight=False, soft_wrap=True)
    chosen = choose_device(name)
    _show(console, None, _machine(chosen))
    passed = True
    for device in dict.fromkeys((torch.device("cpu"), chosen)):
        checks = list(numerics(device))
        _show(console, f"Kernels of {device}", kernels(device, checks))
        _show(console, f"Errors on {device}, relative to fp64", map(_found, checks))
        passed = passed and all(check.passed for check in checks)
    _show(console, "Extras", _extras())
    return passed


def _show(console: Console, heading: str | None, rows: Iterable[tuple[str, str]]) -> None:
    if heading is not None:
        console.print(f"\n[bold]{heading}[/]")
    found = list(rows)
    width = max([WIDTH, *(len(label) + 2 for label, _ in found)])
    for label, value in found:
        console.print(f"{label:<{width}}{value}", markup=False)


def _machine(device: torch.device) -> Iterator[tuple[str, str]]:
    memory, name = memory_bytes(device), str(device)
    if device.type == "cuda":
        name = f"{name} ({torch.cuda.get_device_name(device)})"
    yield "culm", version("culm")
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "torch", str(torch.__version__)
    yield "cores", f"{os.cpu_count()}, torch uses {torch.get_num_threads()}"
    yield "device", name
    yield "memory", size(memory) if memory else "unknown"
    yield "precision", f"{choose_precision(device)} is the fastest matmul precision"
    yield "sandbox", summary()


def _found(check: Check) -> tuple[str, str]:
    label = f"{check.name}, {check.precision}"
    if check.failure:
        return label, f"it fails: {check.failure}; {check.remedy}"
    if check.passed:
        return label, f"{check.error:.1e}"
    return label, f"{check.error:.1e}, more than {check.limit:.0e}: {check.remedy}"


def _extras() -> Iterator[tuple[str, str]]:
    for extra, packages in extras().items():
        if extra in USES:
            there = all(_installed(package) for package in packages)
            state = "installed" if there else f"not installed: pip install 'culm[{extra}]'"
            yield extra, f"{state}; for {USES[extra]}"


def extras() -> dict[str, list[str]]:
    """Packages of each extra, as the installed distribution declares them."""
    found: dict[str, list[str]] = {}
    for line in requires("culm") or []:
        package, _, marker = line.partition(";")
        if "extra ==" in marker:
            extra = marker.split("extra ==")[1].strip(" '\"")
            found.setdefault(extra, []).append(_name(package))
    return {extra: names for extra, names in found.items() if "culm" not in names}


def _name(requirement: str) -> str:
    """The package that a requirement names: pyarrow for `pyarrow>=24`."""
    end = next((i for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), None)
    return requirement[:end]


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
