"""Run folders for tests of the board."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def make_run(
    folder: Path,
    lines: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]] = (),
    state: str = "finished",
    pid: int | None = None,
    **settings: Any,
) -> Path:
    """A run folder as `culm train` leaves it. settings: of `run.yaml`. pid: of its process."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"folder": str(folder), "seed": 0, **settings}
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    write_lines(folder / "metrics.jsonl", lines)
    if evaluations:
        write_lines(folder / "eval.jsonl", evaluations)
    status = {
        "state": state, "reason": None, "step": len(lines), "steps": len(lines),
        "host": socket.gethostname(), "pid": pid or os.getpid(),
        "updated": "2026-11-29T10:00:00+00:00",
    }  # fmt: skip
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]], mode: str = "w") -> None:
    with path.open(mode) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def steps(count: int, first: int = 1, **more: Any) -> list[dict[str, Any]]:
    """Lines of so many steps."""
    return [
        {"step": step, "loss": 4 / step, "tokens": 100 * step, "seconds": 0.5, "rate": 0.1, **more}
        for step in range(first, first + count)
    ]
