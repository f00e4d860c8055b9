"""The Python standard library as a corpus: real text that is on every machine, offline."""

from __future__ import annotations

import sysconfig
from pathlib import Path

LEFT_OUT = {
    "test", "tests", "idle_test", "site-packages", "dist-packages", "idlelib", "turtledemo",
    "__pycache__", "__phello__", "_bundled",
}  # fmt: skip


def files() -> list[Path]:
    """Source files of this Python, sorted by their place in the library."""
    root = Path(sysconfig.get_path("stdlib"))
    found = (path.relative_to(root) for path in root.rglob("*.py"))
    kept = (path for path in found if LEFT_OUT.isdisjoint(path.parts))
    return [root / path for path in sorted(kept, key=lambda path: path.as_posix())]
