"""The base of every tracker: a listener that reports to somewhere else."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from culm.config import Config
from culm.train.events import Event, Listener, Measured, Stepped

ID = "tracker.txt"  # in the run folder
SAMPLES = "samples"  # the end of a result's name


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


def run_id(folder: Path) -> str:
    """By which trackers know the run in a folder, when it resumes too: a random number.

    The path would not do: many people have a run in /workspace/runs/sft.
    """
    known = folder / ID
    if not known.exists():
        known.write_text(secrets.token_hex(8), encoding="utf-8")
    return known.read_text(encoding="utf-8")


class Sample(NamedTuple):
    """A text that the model wrote at an evaluation, as the measure `samples` gives it."""

    prompt: str
    temperature: float
    text: str


class Reporter(ABC):
    """A listener that reports every number of a step under `train/`, and every number and sample
    of an evaluation under `eval/`.
    """

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped):
            seen = {"loss": event.loss, "grad_norm": event.grad_norm, "rate": event.rate}
            self._named("train", {**seen, **event.group_rates, **event.metrics}, event.step)
        elif isinstance(event, Measured):
            self._named("eval", event.results, event.step)
            for name, some in samples(event.results).items():
                self.report_samples(f"eval/{name}", some, event.step)

    def _named(self, group: str, values: Mapping[str, Any], step: int) -> None:
        self.report({f"{group}/{name}": value for name, value in numbers(values).items()}, step)

    @abstractmethod
    def report(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name, after this many steps."""

    @abstractmethod
    def report_samples(self, name: str, samples: Sequence[Sample], step: int) -> None:
        """Texts of one measure, such as `eval/samples`, after this many steps."""

    @abstractmethod
    def close(self) -> None:
        """However the run ended."""


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def samples(results: Mapping[str, Any]) -> dict[str, list[Sample]]:
    """The samples in the results of measures, by the names of their results."""
    return {
        name: [Sample(*(one[field] for field in Sample._fields)) for one in value]
        for name, value in results.items()
        if name.rpartition(".")[2] == SAMPLES and isinstance(value, list)
    }


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in nested results, by dotted names."""
    return {
        name: float(value)
        for name, value in flat(values).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
