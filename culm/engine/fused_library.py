"""Compiles and loads `fused.cpp`: two seconds at the first use, then cached in ~/.cache/culm."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import c_int64, c_void_p
from functools import cache
from pathlib import Path

from culm.log import say

NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni")
SOURCE = Path(__file__).with_name("fused.cpp")
OPTIONS = [
    *("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-mfma"),
    *(f"-m{name.replace('_', '')}" for name in NEEDED),
]


@cache
def library() -> ctypes.CDLL:
    """The compiled step.

    Raises:
        OSError: this machine cannot compile or run it; the message says why.
    """
    cpu = Path("/proc/cpuinfo")
    if set(NEEDED) - set(cpu.read_text().split() if cpu.exists() else ()):
        raise OSError("this CPU has no AVX-512 with bf16 and VNNI")
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    made_of = " ".join([platform.machine(), *OPTIONS]).encode()
    name = hashlib.sha256(SOURCE.read_bytes() + made_of).hexdigest()[:16]
    path = Path(root) / "culm" / f"fused-{name}.so"
    if not path.exists():
        say("Compiling the decoding step; this happens once and takes a few seconds.")
        _build(path)
    found = ctypes.CDLL(str(path))
    pointers = (c_void_p, c_void_p, c_void_p)
    found.culm_decode.argtypes = (c_void_p, c_int64, *pointers, c_int64)
    found.culm_decode.restype = None
    return found


def _build(path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise OSError("no C++ compiler was found")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        done = subprocess.run(
            [compiler, *OPTIONS, str(SOURCE), "-o", str(built)], capture_output=True
        )
        if done.returncode:
            raise OSError(f"{compiler} failed: {done.stderr.decode(errors='replace')[:200]}")
        os.replace(built, path)  # at once: another process may be doing the same


@cache
def no_library() -> str | None:
    """Why the step does not run on this machine; None: it does."""
    try:
        library()
    except OSError as error:
        return str(error)
    return None
