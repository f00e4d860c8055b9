"""`culm doctor`: what this machine offers."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from rich.console import Console

from culm.compiled import instruction_set
from culm.device import choose_device, choose_precision, memory_bytes
from culm.engine.fused_library import no_library
from culm.sandbox.mechanism import summary
from culm.verbs.format import size

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


def show_doctor() -> None:
    """Print versions, device, precision, compiler, sandbox, and what each extra is for."""
    console = Console(highlight=False, soft_wrap=True)
    device = choose_device("auto")
    memory, name = memory_bytes(device), str(device)
    if device.type == "cuda":
        name = f"{name} ({torch.cuda.get_device_name(device)})"
    compiler = next(
        (found for found in ("c++", "g++", "clang++", "cl") if shutil.which(found)), None
    )
    for label, value in (
        ("culm", version("culm")),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", str(torch.__version__)),
        ("cores", f"{os.cpu_count()}, torch uses {torch.get_num_threads()}"),
        ("device", name),
        ("memory", size(memory) if memory else "unknown"),
        ("precision", f"{choose_precision(device)} is the fastest matmul precision"),
        ("decoding", decoding(device)),
        ("compiler", compiler or "none: train.compile=true needs a C++ compiler"),
        ("sandbox", summary()),
    ):
        console.print(f"{label:<12}{value}", markup=False)
    console.print("\n[bold]Extras[/]")
    for extra, packages in extras().items():
        if extra in USES:
            there = all(_installed(package) for package in packages)
            state = "installed" if there else f"not installed: pip install 'culm[{extra}]'"
            console.print(f"{extra:<12}{state}; for {USES[extra]}", markup=False)


def decoding(device: torch.device) -> str:
    """How models in bf16, int8 and int4 decode with few rows."""
    if device.type != "cpu":
        return "in PyTorch"
    missing = no_library()
    if missing is None:
        return f"one fused step for bf16, int8 and int4, with {instruction_set().name}"
    return f"in PyTorch, which is several times slower than the fused step: {missing}"


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
