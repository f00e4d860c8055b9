"""What may be written where, small files of JSON, and clear errors for broken ones."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from culm.atomic import atomic
from culm.config import SettingError
from culm.log import say

POINTER = b"version https://git-lfs"  # how a pointer of Git LFS begins


def refuse_existing(path: Path, overwrite: bool = False) -> None:
    """The one rule of every verb that writes: what is there stays, unless it may be overwritten.

    An empty folder counts as nothing, but not the current one, which would be replaced by another.

    Raises:
        SettingError: naming what is there.
    """
    if path.resolve() == Path.cwd():
        raise SettingError(f"{path}: this is the current folder; give the name of a new one")
    filled = path.is_dir() and any(path.iterdir())
    if not overwrite and (filled or (path.exists() and not path.is_dir())):
        raise SettingError(
            f"{path}: already exists; choose another name, or replace it with --overwrite"
        )


def refuse_unwritable(folder: Path) -> None:
    """Refuse a folder in which nothing can be written, whether it exists already or not.

    Raises:
        SettingError: naming the nearest folder that exists.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
        raise SettingError(
            f"folder: {place} cannot be written to (read-only, or somebody else's); choose another "
            "folder=..."
        )


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


def refuse_pointer(path: Path) -> None:
    """Refuse a Git LFS pointer, which is there instead of the content of the file.

    Raises:
        SettingError: with how to fetch it.
    """
    with suppress(OSError), path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise SettingError(
                f"{path}: a pointer of Git LFS and not the file itself; run git lfs pull where it "
                "was cloned, or download it again"
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


def json_text(values: Any, indent: int | None = None) -> str:
    """As JSON, which has no form for a number that is not finite: such a one is null.

    Without an indent it is one line in ASCII, whatever separates lines in Unicode.
    """
    return json.dumps(_finite(values), indent=indent, ensure_ascii=indent is None, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write indented JSON; what is not finite is null."""
    path.write_text(json_text(values, indent=2) + "\n", encoding="utf-8")


def read_lines(path: Path) -> list[dict]:
    """The lines of a file of JSON objects with their `step`, in order; a null is read as nan."""
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line for line in map(line_of, texts) if line is not None]
    # The last line may be incomplete if the machine stopped.
    lost = len(texts) - len(lines) - (bool(texts) and line_of(texts[-1]) is None)
    if lost:
        say(f"{path}: {lost} damaged lines are left out.")
    return lines


def line_of(text: str) -> dict | None:
    """The object in a line of JSON that has a whole `step`; a null is nan. None for other lines."""
    try:
        values = json.loads(text)
    except ValueError:
        return None
    if not (isinstance(values, dict) and isinstance(values.get("step"), int)):
        return None
    return {name: math.nan if value is None else value for name, value in values.items()}


def write_lines(path: Path, lines: Sequence[Mapping]) -> None:
    """Write all lines of a file atomically."""
    with atomic(path) as fresh:
        fresh.write_text("".join(json_text(line) + "\n" for line in lines), encoding="utf-8")


def sha256(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


POINTS = "embedding.json"  # in a model folder with points of a graph instead of a language model


def is_points(model: str | Path) -> bool:
    """Whether a run or model folder has points of a graph (`culm.graph`)."""
    return any((place / POINTS).is_file() for place in (Path(model), Path(model) / "model"))


def is_local(name: str) -> bool:
    """Whether a name that has the form owner/name is a path here, and not on a hub.

    So is all below a folder that is here or that Culm writes to, and what begins with a dot.
    """
    first = Path(name).parts[:1]
    return name.startswith((".", "/", "~")) or first == ("runs",) or Path(*first).is_dir()
