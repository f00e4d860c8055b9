"""Compiles and loads a C++ file: seconds at the first use, then cached in ~/.cache/culm."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from culm.log import say

OPTIONS = ("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
HEADER = Path(__file__).with_name("vectors.h")


@dataclass(frozen=True)
class InstructionSet:
    """features: what a CPU must have, as Linux names them. options: of the compiler."""

    name: str
    machines: tuple[str, ...]
    features: tuple[str, ...]
    options: tuple[str, ...]


X86, ARM = ("x86_64", "AMD64"), ("aarch64", "arm64")
AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni")
AVX512_OPTIONS = ("-mfma", *(f"-m{name.replace('_', '')}" for name in AVX512))
AMX = ("amx_tile", "amx_bf16")
FASTEST_FIRST = (
    InstructionSet(
        "AMX", X86, (*AVX512, *AMX), (*AVX512_OPTIONS, *(f"-m{n.replace('_', '-')}" for n in AMX))
    ),
    InstructionSet("AVX-512", X86, AVX512, AVX512_OPTIONS),
    InstructionSet("AVX2", X86, ("avx2", "fma", "f16c"), ("-mavx2", "-mfma", "-mf16c")),
    InstructionSet("SSE2", X86, ("sse2",), ()),
    InstructionSet("NEON", ARM, ("asimddp",), ("-march=armv8.2-a+dotprod",)),
)


def instruction_sets() -> list[InstructionSet]:
    """Those that this machine has and its compiler knows, if there is one; the fastest first."""
    cpu = Path("/proc/cpuinfo")
    here = set(cpu.read_text().split()) if cpu.exists() else {"asimddp"}  # macOS on Apple's CPUs
    machine = platform.machine()
    found = [s for s in FASTEST_FIRST if machine in s.machines and here.issuperset(s.features)]
    known = [s for s in found if _compiles(s.options)]
    return known or found


@cache
def _compiles(options: tuple[str, ...]) -> bool:
    """Whether the compiler accepts these options."""
    compiler = _compiler()
    if compiler is None:
        return False
    empty = [compiler, *options, "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(empty, capture_output=True).returncode == 0


def _compiler() -> str | None:
    return shutil.which("c++") or shutil.which("g++")


def instruction_set() -> InstructionSet:
    """The fastest one that this machine has.

    Raises:
        OSError: there is none that Culm knows.
    """
    found = instruction_sets()
    if not found:
        raise OSError(
            f"this CPU ({platform.machine()}) is neither x86-64 nor ARM with the dot product "
            "instructions (asimddp)"
        )
    return found[0]


def compiled(source: Path, what: str) -> ctypes.CDLL:
    """The functions of a C++ file. what: names them for people.

    Raises:
        OSError: this machine cannot compile or run it; the message says why.
    """
    options = (*OPTIONS, *instruction_set().options)
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    made_of = (" ".join([platform.machine(), *options]).encode(), HEADER.read_bytes())
    name = hashlib.sha256(b"".join([source.read_bytes(), *made_of])).hexdigest()[:16]
    path = Path(root) / "culm" / f"{source.stem}-{name}.so"
    if path.exists():
        with suppress(OSError):  # an empty file, of a machine that lost its power
            return ctypes.CDLL(str(path))
    say(f"Compiling {what}; this happens once and takes a few seconds.")
    _build(source, options, path)
    return ctypes.CDLL(str(path))


def _build(source: Path, options: tuple[str, ...], path: Path) -> None:
    compiler = _compiler()
    if compiler is None:
        raise OSError("no C++ compiler was found")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        done = subprocess.run(
            [compiler, *options, str(source), "-o", str(built)], capture_output=True
        )
        if done.returncode:
            raise OSError(f"{compiler} failed: {done.stderr.decode(errors='replace')[:200]}")
        with built.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(built, path)  # at once: another process may be doing the same
