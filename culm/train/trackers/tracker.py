"""The base of every tracker: a listener that reports to somewhere else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from culm.config import Config
from culm.train.events import Listener


class TrackerConfig(Config, ABC):
    """Settings of a tracker."""

    kind: str

    def check(self) -> None:
        """Asked before a run starts, and by a plan.

        Raises:
            ImportError: its package is not installed; the message names the extra.
        """
        return None

    @abstractmethod
    def open(self, folder: Path, settings: Mapping[str, Any], step: int) -> Listener:
        """A listener for the run in `folder`, which continues after `step`.

        settings: of the whole run, as plain values. Only the rank that writes opens trackers.
        """


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in nested results, by dotted names."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = float(value)
    return found
