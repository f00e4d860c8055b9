"""The stages of a quickstart that are finished, so that started again it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from culm import log
from culm.files import atomic, write_json
from culm.train.memory import peak_bytes, reset_peak


@dataclass(frozen=True)
class Stages:
    """What is finished, in `stages.json`: name -> what the stage found, seconds, peak_bytes.

    `seconds.json` counts the time of each stage, also of one that was interrupted.
    """

    folder: Path

    def read(self) -> dict[str, dict[str, Any]]:
        return recall(self.folder / "stages.json", {})

    def seconds(self) -> dict[str, float]:
        return recall(self.folder / "seconds.json", {})

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do the stage, or give what it found when it was done before."""
        done = self.read()
        if name in done:
            log.say(f"{name}: done before.")
            return done[name]
        reset_peak()
        began = time.perf_counter()
        try:
            found = work()
        finally:
            spent = self.seconds()
            spent[name] = round(spent.get(name, 0.0) + time.perf_counter() - began, 2)
            keep(self.folder / "seconds.json", spent)
        done[name] = {**found, "seconds": spent[name], "peak_bytes": peak_bytes()}
        keep(self.folder / "stages.json", done)
        return done[name]


def keep(path: Path, values: Any) -> None:
    """Write JSON, whole or not at all."""
    with atomic(path) as fresh:
        write_json(fresh, values)


def recall(path: Path, otherwise: Any) -> Any:
    """What was kept, or what is so before anything was."""
    return json.loads(path.read_text()) if path.exists() else otherwise
