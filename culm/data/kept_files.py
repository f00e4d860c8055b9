"""Files that stay in a hidden folder next to a corpus until it is complete, so that a call after a
kill does no piece of the work again.

Each is named by a digest of the text and of all that decides its contents: text or settings that
changed since are worked on as if nothing were there.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

KEPT_FILE = re.compile(r"[0-9a-f]{32}\.(npz|\d+)")


class KeptFiles:
    """folder: None to keep nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def read(self, key: str) -> bytes | None:
        """None if it is not there."""
        if self._folder is None:
            return None
        try:
            return (self._folder / f"{key}.npz").read_bytes()
        except OSError:
            return None

    def write(self, key: str, data: bytes | memoryview) -> None:
        """At once or not at all."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = self._folder / f"{key}.{os.getpid()}"
        fresh.write_bytes(data)
        os.replace(fresh, self._folder / f"{key}.npz")

    def forget(self) -> None:
        """Remove them, once the corpus is complete; nothing else."""
        if self._folder is None or not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            if KEPT_FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # somebody put something else there
            self._folder.rmdir()
