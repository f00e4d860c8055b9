"""The `sandbox` settings: what a program may use, and how it is confined."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from culm.config import Config

Mechanism = Literal["bubblewrap", "namespaces", "unconfined"]


class Limits(Config):
    """seconds: wall time of a program; then it is killed with all of its processes. cpu_seconds:
    CPU time of each process. memory_bytes: address space of each process, and memory that all of
    them hold. processes: at one time, threads included. scratch_bytes: of its folder, which lies in
    memory. file_bytes: of each file. open_files: of each process. output_bytes: of each of stdout
    and stderr; the rest is cut.

    mechanism: auto takes namespaces, or else bubblewrap; unconfined accepts the risk that a
    program reads, changes and sends whatever you could.
    """

    seconds: PositiveFloat = Field(default=10.0, le=86_400)
    cpu_seconds: PositiveInt = 10
    memory_bytes: int = Field(default=512 << 20, ge=64 << 20)
    processes: PositiveInt = 16
    scratch_bytes: int = Field(default=32 << 20, ge=4096)
    file_bytes: PositiveInt = 16 << 20
    open_files: int = Field(default=64, ge=8)
    output_bytes: PositiveInt = 64 << 10
    mechanism: Literal["auto"] | Mechanism = "auto"
