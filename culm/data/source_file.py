"""What is remembered of a file that a corpus was made from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from culm.config import Config
from culm.files import sha256

BLOCKS, BLOCK = 16, 1 << 16  # of a large file that are read, and their bytes


class SourceFile(Config):
    """Size, time of the last change (nanoseconds since 1970) and digest of a file."""

    bytes: int
    modified: int
    sha256: str


def source_file(path: Path) -> SourceFile:
    """A file as it is now."""
    facts = path.stat()
    return SourceFile(bytes=facts.st_size, modified=facts.st_mtime_ns, sha256=sha256(path))


def sampled_digest(path: Path) -> str:
    """SHA-256 of a file of up to a megabyte; of blocks at equal distances, and of the size, of a
    larger one, whose own digest would take as long as reading all of it.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= BLOCKS * BLOCK:
            digest.update(file.read())
            return digest.hexdigest()
        for number in range(BLOCKS):
            file.seek(number * (size - BLOCK) // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()
