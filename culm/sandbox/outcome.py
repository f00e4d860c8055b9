"""A program, and how its run ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "timed_out", "out_of_memory", "killed", "refused"]


@dataclass(frozen=True)
class Program:
    """code: Python. stdin: what it reads there."""

    code: str
    stdin: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    status: passed: it ran to its last line, and its exit code is 0. failed: it raised an exception
    or exited before its last line, whatever its exit code. timed_out: it used up its wall or CPU
    time. out_of_memory: a MemoryError ended it. killed: a signal did. refused: the sandbox could
    not be set up, so the program never ran and has no verdict.
    exit_code: as in subprocess, -9 for signal 9; None if the sandbox killed or refused it.
    stdout, stderr: UTF-8, with U+FFFD for other bytes. truncated: whether one of them was cut; its
    last line says so. reason: why it did not pass, in one sentence. mechanism: what confined it.
    """

    status: Status
    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float
    truncated: bool
    reason: str
    mechanism: str

    @property
    def passed(self) -> bool:
        return self.status == "passed"
