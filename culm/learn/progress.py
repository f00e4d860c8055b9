"""Which exercises a reader has done: a small file in the user's data folder."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from culm.atomic import InUseError, atomic
from culm.config import SettingError
from culm.files import read_json, write_json
from culm.log import say


def progress_file() -> Path:
    """`$CULM_LEARN`, or `culm/learn.json` in the XDG data folder."""
    if named := os.environ.get("CULM_LEARN"):
        return Path(named)
    root = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(root) / "culm" / "learn.json"


def done() -> dict[str, str]:
    """The time at which each exercise was right first, by its name. A damaged file is set aside."""
    path = progress_file()
    try:
        return read_json(path) if path.is_file() else {}
    except SettingError as error:
        aside = path.with_name(f"{path.name}.damaged")
        with suppress(OSError):  # a folder that cannot be written to
            path.replace(aside)
        say(f"{error}; it is now {aside}, and progress starts again")
        return {}


def record(name: str) -> None:
    """Note that an exercise is right. A home that cannot be written to stops nobody."""
    path = progress_file()
    try:
        known = done()
        if name in known:
            return
        with atomic(path) as fresh:
            write_json(fresh, {**known, name: datetime.now(UTC).isoformat(timespec="seconds")})
    except (OSError, InUseError) as error:
        say(f"Not noted as done: {error}")
