"""Which kernels a device has for attention, decoding, the optimizer and compiled blocks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec

import torch

from culm.adapt.float8 import check_float8
from culm.compiled import instruction_set
from culm.config import SettingError
from culm.engine.fused_library import no_library
from culm.model.backend import choose_backend, trial
from culm.model.score_rule import Backend
from culm.verbs.doctor_numerics import Check

GPU_BACKENDS: tuple[Backend, ...] = ("sdpa", "flex", "flash2", "flash3", "blocks")


def kernels(device: torch.device, checks: list[Check]) -> Iterator[tuple[str, str]]:
    """A kind of kernel, and what computes it. checks: the numerics of the device."""
    yield "attention", _attention(device)
    yield "decoding", _decoding(device)
    yield "optimizer", _optimizer(checks)
    yield "compile", _compile(device)
    if device.type != "cpu":
        yield "fp8", _fp8(device)


def _attention(device: torch.device) -> str:
    """On a GPU each backend is tried with gradients, in bf16."""
    dtype = torch.bfloat16
    if device.type == "cpu":  # to try flex would compile for half a minute
        missing = trial(device, "flash_cpu", dtype, training=True)
        own = f"flash_cpu in bf16, with {instruction_set().name}; " if missing is None else ""
        others = "blocks; also sdpa, and flex without gradients; flash2 and flash3 need a GPU"
        return own + others + ("" if missing is None else f"; flash_cpu: {missing}")
    failures = {name: trial(device, name, dtype, training=True) for name in GPU_BACKENDS}
    chosen = choose_backend(device, dtype=dtype, training=True)
    working = [name for name, failure in failures.items() if failure is None and name != chosen]
    failed = [f"{name}: {failure}" for name, failure in failures.items() if failure is not None]
    return "; ".join([chosen, *([f"also {', '.join(working)}"] if working else []), *failed])


def _decoding(device: torch.device) -> str:
    """How models in bf16, int8 and int4 decode with few rows."""
    if device.type != "cpu":
        return "in PyTorch"
    missing = no_library()
    if missing is None:
        return f"one fused step for bf16, int8 and int4, with {instruction_set().name}"
    return f"in PyTorch, which is several times slower than the fused step: {missing}"


def _optimizer(checks: list[Check]) -> str:
    failed = [one.failure for one in checks if one.name == "AdamW" and one.failure]
    return f"fused AdamW does not run: {failed[0]}" if failed else "fused AdamW"


def _compile(device: torch.device) -> str:
    if device.type != "cpu":
        return "with Triton" if find_spec("triton") else "none: train.compile=true needs Triton"
    compiler = next((name for name in ("c++", "g++", "clang++", "cl") if shutil.which(name)), None)
    return f"with {compiler}" if compiler else "none: train.compile=true needs a C++ compiler"


def _fp8(device: torch.device) -> str:
    try:
        check_float8(device)
    except (ImportError, SettingError) as error:
        return str(error)
    return "train.precision=fp8"
