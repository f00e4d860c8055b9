"""One result for one run file, on the same machine with the same versions."""

from __future__ import annotations

import os

import torch


def make_deterministic() -> None:
    """Take deterministic kernels only, before anything touches a GPU.

    An operator that has none raises an error that names it. On a CPU kernels are deterministic
    as they are; on a GPU it costs speed.
    """
    # Buffers of cuBLAS, and the order in which NCCL adds, would depend on what happened before.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for name, value in (("NCCL_ALGO", "Ring"), ("NCCL_NVLS_ENABLE", "0")):
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
