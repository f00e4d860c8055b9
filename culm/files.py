"""Files that are written completely or not at all, and clear errors for broken ones."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from culm.config import SettingError
from culm.log import say


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name next to `path` for a file or folder, which replaces `path` when complete.

    All of it is on the disk before it gets its name, and what was there before goes only then. If
    anything fails, nothing is left behind.

    Raises:
        SettingError: a folder there also holds what the new one does not have.
        OSError: naming the path and the reason (no space left, no permission).
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path  # the link stays, its target changes
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield fresh
        _sync(fresh)
        _swap(fresh, path)
        _sync_entry(path.parent)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OSError(f"{path}: could not be written ({reason}); nothing was changed") from error
    finally:
        _remove(fresh)


def _sync(path: Path) -> None:
    if path.is_dir():
        for inner in path.iterdir():
            _sync(inner)
        _sync_entry(path)
        return
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_entry(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folder, and needs no such call
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(fresh: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(fresh, path)
        return
    if not fresh.is_dir():
        raise SettingError(f"{path}: there is a folder of this name; choose another name")
    others = {inner.name for inner in path.iterdir()} - {inner.name for inner in fresh.iterdir()}
    if others:
        raise SettingError(
            f"{path}: also holds {min(others)}, which would be lost; move it away, or choose "
            "another folder"
        )
    # No system call replaces a full folder, so the old one is renamed for a moment.
    aside = path.with_name(f".{path.name}.{os.getpid()}.old")
    os.replace(path, aside)
    try:
        os.replace(fresh, path)
    except BaseException:  # including Ctrl-C in this moment
        if not path.exists():
            os.replace(aside, path)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # such as a parent that is a file: then nothing exists
            path.unlink(missing_ok=True)


def refuse_nonempty(folder: Path, mark: str) -> None:
    """Refuse to replace a folder that has other files and no file `mark`.

    Raises:
        SettingError: naming the folder.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"{folder}: there is a file of this name; choose another folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise SettingError(
            f"{folder}: holds other files, which would be lost; choose another folder"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingError(f"{path}: there is no such file") from None
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{path}: broken, not readable as JSON: {error}") from None
    if not isinstance(values, dict):
        raise SettingError(f"{path}: expected a mapping, found {type(values).__name__}")
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_lines(path: Path) -> list[dict]:
    """The lines of a file of JSON objects with their `step`, in order."""
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line for line in map(_line, texts) if line is not None]
    # The last line may be incomplete if the machine stopped.
    lost = len(texts) - len(lines) - (bool(texts) and _line(texts[-1]) is None)
    if lost:
        say(f"{path}: {lost} damaged lines are left out.")
    return lines


def _line(text: str) -> dict | None:
    try:
        values = json.loads(text)
    except ValueError:
        return None
    return values if isinstance(values, dict) and isinstance(values.get("step"), int) else None


def write_lines(path: Path, lines: Sequence[Mapping]) -> None:
    """Write all lines of a file atomically."""
    with atomic(path) as fresh:
        fresh.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def sha256(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
