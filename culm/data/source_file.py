"""What is remembered of a file that a corpus was made from."""

from __future__ import annotations

from pathlib import Path

from culm.config import Config
from culm.files import sha256


class SourceFile(Config):
    """Size, time of the last change (nanoseconds since 1970) and digest of a file."""

    bytes: int
    modified: int
    sha256: str


def source_file(path: Path) -> SourceFile:
    """A file as it is now."""
    facts = path.stat()
    return SourceFile(bytes=facts.st_size, modified=facts.st_mtime_ns, sha256=sha256(path))
