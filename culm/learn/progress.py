"""Which exercises a reader has done: a small file in the user's data folder."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from culm.files import read_json, write_json


def progress_file() -> Path:
    """`$CULM_LEARN`, or `culm/learn.json` in the XDG data folder."""
    if named := os.environ.get("CULM_LEARN"):
        return Path(named)
    root = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(root) / "culm" / "learn.json"


def done() -> dict[str, str]:
    """The time at which each exercise was right first, by its name."""
    path = progress_file()
    return read_json(path) if path.is_file() else {}


def record(name: str) -> None:
    """Note that an exercise is right."""
    known, path = done(), progress_file()
    if name not in known:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**known, name: datetime.now(UTC).isoformat(timespec="seconds")})
