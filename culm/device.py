"""Device, precision and memory of this machine, measured instead of assumed."""

from __future__ import annotations

import os
import sys
import time
from functools import cache
from pathlib import Path

import torch

from culm.config import SettingError
from culm.dtype import activations_of

DEVICES = ("cpu", "cuda", "mps", "xpu")
CGROUP = Path("/sys/fs/cgroup/memory.max")  # memory limit of a container


def choose_device(name: str) -> torch.device:
    """The device of this name; `auto` is the first CUDA device, or the CPU if there is none.

    Raises:
        SettingError: the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in DEVICES:
        raise SettingError(f"device: {name!r} is not one of auto, {', '.join(DEVICES)}")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(f"device: {name!r} is not available here: {reason}") from None
    return device


@cache
def choose_precision(device: torch.device) -> str:
    """bf16 if its matmuls are at least a quarter faster than those in fp32."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, timings of several threads are noise
    try:
        ratio = _seconds(device, "bf16") / _seconds(device, "fp32")
    finally:
        torch.set_num_threads(threads)
    return "bf16" if ratio < 0.8 else "fp32"


@cache
def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of the best of some large matmuls."""
    size = 512 if device.type == "cpu" else 4096
    return 2 * size**3 / _seconds(device, precision, size)


def _seconds(device: torch.device, precision: str, size: int = 512) -> float:
    """Of a matmul of square matrices."""
    x = torch.ones(size, size, dtype=activations_of(precision), device=device)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        y = x @ x
        float(y[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - started)
    return best


def memory_bytes(device: torch.device) -> int | None:
    """Memory of the device; on a CPU of this machine or container. None if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type != "cpu" or sys.platform == "win32":
        return None
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    return physical if limit == "max" else min(physical, int(limit))
