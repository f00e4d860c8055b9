"""Compiles and loads a C++ file: seconds at the first use, then cached in ~/.cache/culm."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from culm.log import say

NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni")
OPTIONS = [
    *("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-mfma"),
    *(f"-m{name.replace('_', '')}" for name in NEEDED),
]


def compiled(source: Path, what: str) -> ctypes.CDLL:
    """The functions of a C++ file. what: names them for people.

    Raises:
        OSError: this machine cannot compile or run it; the message says why.
    """
    cpu = Path("/proc/cpuinfo")
    if set(NEEDED) - set(cpu.read_text().split() if cpu.exists() else ()):
        raise OSError("this CPU has no AVX-512 with bf16 and VNNI")
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    made_of = " ".join([platform.machine(), *OPTIONS]).encode()
    name = hashlib.sha256(source.read_bytes() + made_of).hexdigest()[:16]
    path = Path(root) / "culm" / f"{source.stem}-{name}.so"
    if not path.exists():
        say(f"Compiling {what}; this happens once and takes a few seconds.")
        _build(source, path)
    return ctypes.CDLL(str(path))


def _build(source: Path, path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise OSError("no C++ compiler was found")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        done = subprocess.run(
            [compiler, *OPTIONS, str(source), "-o", str(built)], capture_output=True
        )
        if done.returncode:
            raise OSError(f"{compiler} failed: {done.stderr.decode(errors='replace')[:200]}")
        os.replace(built, path)  # at once: another process may be doing the same
