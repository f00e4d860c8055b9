"""What the reports of a sandbox mean: a status, an exit code and a reason."""

from __future__ import annotations

import json
import signal
from typing import Any, Literal

Stop = Literal["time", "memory"] | None


def verdict(
    status: bytes, report: bytes, nonce: str, stop: Stop, limits: dict[str, Any]
) -> dict[str, Any]:
    """status: of the first process; its first byte says that the sandbox was ready. report: of the
    program, with the nonce if it is genuine. stop: which limit the sandbox was stopped for.
    """
    if not status:
        return _of("refused", None, "The sandbox could not be set up: it ended before the program.")
    if stop == "time":
        return _of("timed_out", None, f"It ran for more than {limits['seconds']:g} s.")
    if stop == "memory":
        most = limits["memory_bytes"] >> 20
        return _of("out_of_memory", None, f"Its processes held more than {most} MiB in memory.")
    ended = _parsed(status)
    reports = [_parsed(line) for line in report.splitlines()]
    genuine = next((one for one in reports if one.get("nonce") == nonce), {})
    if refused := ended.get("refused") or genuine.get("refused"):
        return _of("refused", None, f"The sandbox could not be set up: {refused}.")
    if "exit_code" not in ended:
        return _of("killed", None, "Its sandbox was killed.")
    code, cpu = ended["exit_code"], limits["cpu_seconds"]
    used_up = code == -signal.SIGKILL and ended["cpu_seconds"] >= cpu
    if code == -signal.SIGXCPU or used_up:
        return _of("timed_out", code, f"It computed for more than {cpu} s.")
    if code < 0:
        return _of("killed", code, f"It was killed by signal {_signal(-code)}.")
    return _exited(code, genuine.get("end", "exited"))


def _exited(code: int, end: str) -> dict[str, Any]:
    if end == "finished" and code == 0:
        return _of("passed", code, "")
    if end in ("exited", "finished"):
        when = "at its end" if end == "finished" else "before its last line"
        return _of("failed", code, f"It exited {when}, with code {code}.")
    return _of("out_of_memory" if end == "MemoryError" else "failed", code, f"It raised {end}.")


def _of(status: str, code: int | None, reason: str) -> dict[str, Any]:
    return {"status": status, "exit_code": code, "reason": reason}


def _signal(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else str(number)


def _parsed(line: bytes) -> dict[str, Any]:
    """A report as a mapping. The program can write reports too, so this may be anything."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
