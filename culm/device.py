"""What this machine offers: device, precision, attention backend, memory. Probed, not assumed."""

from __future__ import annotations

import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from culm.config import SettingError
from culm.dtype import DTYPES, name_of
from culm.log import say
from culm.model.attend import Backend, Rule, attend
from culm.model.context import Context

DEVICES = ("cpu", "cuda", "mps", "xpu")
CGROUP = Path("/sys/fs/cgroup/memory.max")  # what a container may use


def choose_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU.

    Raises:
        SettingError: the named device is not here.
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
        raise SettingError(f"device: {name!r} cannot be used here: {reason}") from None
    return device


def choose_backend(
    device: torch.device,
    wanted: Backend | Literal["auto"] = "auto",
    dtype: torch.dtype = torch.float32,
    training: bool = False,
) -> Backend:
    """How attention is computed here: what is wanted, if it passes a trial.

    auto: torch's kernels on a GPU; query blocks on a CPU, whose kernel computes hidden scores too,
    and where the others fail, which a line says. training: with gradients.

    Raises:
        SettingError: what is wanted cannot run here.
    """
    if wanted == "auto":
        if device.type == "cuda":
            reason = trial(device, "sdpa", dtype, training)
            if reason is None:
                return "sdpa"
            say(f"Attention in blocks: sdpa does not run on {device}: {reason}")
        return "blocks"
    reason = trial(device, wanted, dtype, training)
    if reason is not None:
        use = "train" if training else "compute"
        raise SettingError(
            f"train.attention: {wanted} does not {use} in {name_of(dtype)} on {device}: {reason}; "
            "take train.attention=auto"
        )
    return wanted


@cache
def trial(device: torch.device, backend: Backend, dtype: torch.dtype, training: bool) -> str | None:
    """Why a backend cannot compute two small rows of documents here; None: it can."""
    places, rule = torch.arange(64).expand(2, -1), Rule(window=8)
    positions, documents = places % 40, places // 40
    drawn = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 64, heads, 64, generator=drawn) for heads in (4, 2, 2))
    expected = attend(q, k, v, Context(positions, documents), rule, "blocks")
    context = Context(positions.to(device), documents.to(device))
    queries, keys, values = (
        x.to(device, dtype, copy=True).requires_grad_(training) for x in (q, k, v)
    )
    try:
        if backend in ("flash2", "flash3"):
            from culm.model.flash import activate

            activate(int(backend[-1]))
        out = attend(queries, keys, values, context, rule, backend)
        if training:
            out.float().sum().backward()
        off = float((out.detach().float().cpu() - expected).abs().max())
    except Exception as error:  # a compiler, a driver or a kernel may fail in any way
        return _reason(error)
    return None if off <= 0.05 else f"it is off by {off:.2g}"


def _reason(error: Exception) -> str:
    """Its first sentence."""
    told = str(error).strip().splitlines()
    return told[0].partition(". ")[0].rstrip(".") if told else type(error).__name__


@cache
def choose_precision(device: torch.device) -> str:
    """bf16 where products in it are at least a quarter faster than in fp32."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, threads that wait for each other tell nothing
    try:
        ratio = _seconds(device, "bf16") / _seconds(device, "fp32")
    finally:
        torch.set_num_threads(threads)
    return "bf16" if ratio < 0.8 else "fp32"


def _seconds(device: torch.device, precision: str) -> float:
    x = torch.ones(512, 512, dtype=DTYPES[precision], device=device)
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        y = x @ x
        float(y[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - began)
    return best


def memory_bytes(device: torch.device) -> int | None:
    """Memory of the device; on a CPU of this machine or container. None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type != "cpu" or sys.platform == "win32":
        return None
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    return physical if limit == "max" else min(physical, int(limit))
