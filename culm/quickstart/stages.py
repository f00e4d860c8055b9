"""The finished stages of a quickstart, so that it can resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from culm import log
from culm.atomic import atomic
from culm.config import SettingError
from culm.files import read_json, sha256, write_json
from culm.train.memory import peak_bytes, reset_peak


@dataclass(frozen=True)
class Stages:
    """`stages.json` maps each finished stage to its results, seconds, peak_bytes, and the digest of
    every file that it made.

    `seconds.json` counts the time of each stage, interrupted ones too.
    """

    folder: Path

    def read(self) -> dict[str, dict[str, Any]]:
        return recall(self.folder / "stages.json", {})

    def seconds(self) -> dict[str, float]:
        return recall(self.folder / "seconds.json", {})

    def run(self, name: str, work: Callable[[], dict[str, Any]], *outputs: str) -> None:
        """Run the stage unless it is finished.

        work: gives its results. outputs: files and folders that it makes; if one is missing or
        damaged, the stage runs again.
        """
        done = self.read()
        damaged = self._damaged(done[name]["files"]) if name in done else None
        if name in done and damaged is None:
            log.say(f"{name}: already finished.")
            return
        if damaged is not None:
            log.say(f"{name}: {damaged} is missing or damaged; running it again.")
        reset_peak()
        start = time.perf_counter()
        try:
            found = work()
        finally:
            spent = self.seconds()
            spent[name] = round(spent.get(name, 0.0) + time.perf_counter() - start, 2)
            keep(self.folder / "seconds.json", spent)
        facts = {"seconds": spent[name], "peak_bytes": peak_bytes(), "files": self._files(outputs)}
        keep(self.folder / "stages.json", done | {name: {**found, **facts}})

    def _files(self, outputs: Sequence[str]) -> dict[str, str]:
        paths = sorted(path for output in outputs for path in _files_in(self.folder / output))
        return {path.relative_to(self.folder).as_posix(): sha256(path) for path in paths}

    def _damaged(self, files: dict[str, str]) -> Path | None:
        """The first file that changed since it was written."""
        for name, digest in files.items():
            path = self.folder / name
            if not path.is_file() or sha256(path) != digest:
                return path
        return None


def _files_in(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from (inner for inner in path.rglob("*") if inner.is_file())


def keep(path: Path, values: dict[str, Any]) -> None:
    """Write JSON atomically."""
    with atomic(path) as fresh:
        write_json(fresh, values)


def recall(path: Path, otherwise: dict[str, Any]) -> dict[str, Any]:
    """The values in a file, or `otherwise` if there is none."""
    try:
        return read_json(path) if path.exists() else otherwise
    except SettingError as error:
        raise SettingError(f"{error}; delete it, or give another --folder") from None
