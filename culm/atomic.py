"""Files and folders that are written completely or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from culm.config import SettingError
from culm.exits import IN_USE, RunError

OURS, MARK = ".culm", "culm-temporary.lock"  # how a hidden folder of ours ends, and what is in it
UNMARKED = 60  # seconds after which no living process is about to make its mark
FRESH, PREVIOUS, DISCARDED = "fresh", "previous", "discarded"


class InUseError(RunError):
    """Another process is writing there."""

    exit_code = IN_USE


@contextmanager
def atomic(path: Path, replaces: Collection[str] = ()) -> Iterator[Path]:
    """A temporary name for a file or folder, which replaces `path` when complete.

    It is in a hidden folder next to `path` that belongs to this process alone. All of it is on the
    disk before it gets its name, and what was there before goes only then. If anything fails,
    nothing is left behind; what a killed process left is removed by the next one that writes there.

    replaces: names in an older folder there that may go even if the new one does not have them.

    Raises:
        SettingError: a folder there also holds what the new one does not have.
        InUseError: another process is writing `path`.
        OSError: naming the path and the reason (no space left, no permission).
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path  # the link stays, its target changes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _work_folder(path) as work:
            yield work / FRESH
            _sync(work / FRESH)
            _swap(work, path, replaces)
            _sync_entry(path.parent)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and _is_of_another_file(error, path):
            raise  # such as a source that cannot be read
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OSError(f"{path}: could not be written ({reason}); nothing was changed") from error


def _is_of_another_file(error: OSError, path: Path) -> bool:
    """Whether the error names a file that is neither part of `path` nor of its hidden folder."""
    if not isinstance(error.filename, str | os.PathLike):
        return False
    named, hidden = Path(error.filename), f".{path.name}."
    ours = named.is_relative_to(path) or named in path.parents
    inside = named.is_relative_to(path.parent) and named.relative_to(path.parent).parts[:1]
    first = inside[0] if inside else ""
    return not ours and not (first.startswith(hidden) and first.endswith(OURS))


def discard(path: Path) -> None:
    """Remove a file or folder at once: a killed process leaves no part of it under its name."""
    with _work_folder(path) as work:
        os.replace(path, work / DISCARDED)


@contextmanager
def _work_folder(path: Path) -> Iterator[Path]:
    """A new hidden folder next to `path`, which is removed at the end.

    The mark in it says that Culm made it, and is locked as long as this process lives.
    """
    work = path.with_name(f".{path.name}.{secrets.token_hex(6)}{OURS}")
    work.mkdir()
    lock = FileLock(work / MARK)
    lock.acquire(timeout=1)
    try:
        _remove_leftovers(path, work)
        yield work
    finally:
        lock.release()
        _remove_work(work)


def _remove_leftovers(path: Path, own: Path) -> None:
    """Remove what killed processes left next to `path`: folders with our mark, and no others.

    Raises:
        InUseError: a living process is writing `path`.
    """
    for work in path.parent.glob(f".*{OURS}"):
        if work == own:
            continue
        if not (work / MARK).is_file():
            _remove_unmarked(work)
            continue
        target = path.with_name(work.name[1:].removesuffix(OURS).rpartition(".")[0])
        lock = FileLock(work / MARK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if target.name == path.name:
                raise InUseError(
                    f"{path}: another process is writing it; wait for it, or choose another name"
                ) from None
            continue
        except OSError:  # somebody else's, or just removed
            continue
        try:
            _put_back(work, target)
        finally:
            lock.release()
        _remove_work(work)


def _remove_unmarked(work: Path) -> None:
    """Remove what was killed before it made its mark: an empty folder, and not a new one."""
    with suppress(OSError):  # somebody else's, with something in it
        if time.time() - work.stat().st_mtime > UNMARKED:
            work.rmdir()


def _put_back(work: Path, target: Path) -> None:
    """Give the older folder its name again, if the process was killed between two renames."""
    if (work / PREVIOUS).exists():
        os.replace(work / PREVIOUS, work / DISCARDED if target.exists() else target)


def _remove_work(work: Path) -> None:
    """The mark goes last: a folder that is half removed is still known to be ours."""
    for inner in (FRESH, DISCARDED):
        _remove(work / inner)
    if not (work / PREVIOUS).exists():
        _remove(work)


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


def _swap(work: Path, path: Path, replaces: Collection[str]) -> None:
    fresh = work / FRESH
    if not path.is_dir():
        os.replace(fresh, path)
        return
    if not fresh.is_dir():
        raise SettingError(f"{path}: there is a folder of this name; choose another name")
    others = {inner.name for inner in path.iterdir()} - {inner.name for inner in fresh.iterdir()}
    if others := others - set(replaces):
        raise SettingError(
            f"{path}: also holds {min(others)}, which would be lost; move it away, or choose "
            "another folder"
        )
    # No system call replaces a full folder, so the old one is renamed for a moment.
    os.replace(path, work / PREVIOUS)
    try:
        os.replace(fresh, path)
    finally:  # also after Ctrl-C in this moment
        _put_back(work, path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # such as a parent that is a file: then nothing exists
            path.unlink(missing_ok=True)
