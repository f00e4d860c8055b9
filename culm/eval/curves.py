"""What runs measured, as curves; runs that differ in their seed alone are one curve with a band."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import yaml

from culm.config import SettingError, did_you_mean
from culm.files import read_lines
from culm.train.run_folder import SETTINGS
from culm.train.trackers.tracker import numbers

Axis = Literal["step", "tokens"]
OWN = ("folder", "seed", "device", "track")  # settings of a run that make no other curve
WINDOW = 10  # last values of a metric that are averaged; a loss differs much from step to step


class Point(NamedTuple):
    """The mean over the runs of a curve, and the least and greatest of them."""

    x: float
    mean: float
    least: float
    greatest: float


@dataclass(frozen=True)
class Run:
    """A run folder. settings: by dotted names. values: of each metric, by step. tokens: by step."""

    folder: Path
    settings: Mapping[str, Any]
    values: Mapping[str, Mapping[int, float]]
    tokens: Mapping[int, float]


def read_measured(folder: Path) -> Run:
    """What is in metrics.jsonl and eval.jsonl; a metric that both have is that of evaluations under
    `eval.NAME`.

    Raises:
        SettingError: it is no run, or has measured nothing yet.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise SettingError(f"{folder}: it is no run, since it has no {SETTINGS}")
    trained, evaluated = (read_lines(folder / f"{name}.jsonl") for name in ("metrics", "eval"))
    values: dict[str, dict[int, float]] = {}
    for line in trained:
        for name, value in _finite(line).items():
            values.setdefault(name, {})[line["step"]] = value
    for line in evaluated:
        for name, value in _finite(line).items():
            known = f"eval.{name}" if any(name in one for one in trained) else name
            values.setdefault(known, {})[line["step"]] = value
    if not values:
        raise SettingError(f"{folder}: it has measured nothing yet")
    return Run(folder, settings_in(folder), values, values.get("tokens", {}))


def _finite(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line that a curve can have: not those of a step that was left out."""
    return {name: value for name, value in numbers(line).items() if math.isfinite(value)}


def settings_in(folder: Path) -> dict[str, Any]:
    """The settings that make another curve, by dotted names; of the run that it starts from too,
    since every seed has its own.
    """
    found = flat(yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8")))
    kept = {name: value for name, value in found.items() if name not in OWN}
    start = kept.get("start")
    if isinstance(start, str) and (Path(start) / SETTINGS).is_file():
        kept["start"] = settings_in(Path(start))
    return kept


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names; lists are values."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    parts = [flat(value, f"{prefix}.{name}" if prefix else name) for name, value in values.items()]
    return {name: value for part in parts for name, value in part.items()}


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs with the same settings, by the settings in which the groups differ, or by the folder
    where these are too many to read.
    """
    kept = [run.settings for run in runs]
    names = sorted({name for settings in kept for name in settings})
    differ = [n for n in names if len({repr(settings.get(n)) for settings in kept}) > 1]
    found: dict[tuple[str, ...], list[Run]] = {}
    for run, settings in zip(runs, kept, strict=True):
        found.setdefault(tuple(repr(settings.get(name)) for name in differ), []).append(run)
    labels = [
        ", ".join(f"{name.split('.')[-1]}={v}" for name, v in zip(differ, key, strict=True))
        for key in found
    ]
    if not differ or max(map(len, labels)) > 40:
        labels = [str(members[0].folder) for members in found.values()]
    return dict(zip(labels, found.values(), strict=True))


def curve_of(runs: Sequence[Run], metric: str, axis: Axis = "step") -> list[Point]:
    """A metric over the steps that all these runs have, in order.

    Raises:
        SettingError: a run has no such metric.
    """
    for run in runs:
        if metric not in run.values:
            known = did_you_mean(metric, list(run.values))
            raise SettingError(f"--metric: {run.folder} has no {metric!r}{known}")
    steps = sorted(set.intersection(*(set(run.values[metric]) for run in runs)))
    points = []
    for step in steps:
        values = [run.values[metric][step] for run in runs]
        x = fmean(run.tokens.get(step, 0.0) for run in runs) if axis == "tokens" else step
        points.append(Point(x, fmean(values), min(values), max(values)))
    return points


def last(runs: Sequence[Run], metric: str) -> Point | None:
    """The last value of each run, which is a mean over at most a tenth of its curve; None where
    they have no step in common.
    """
    points = [curve_of(runs, metric), *(curve_of([run], metric) for run in runs)]
    if not points[0]:
        return None
    count = max(1, min(WINDOW, len(points[0]) // 10))
    ends = [fmean(point.mean for point in curve[-count:]) for curve in points[1:]]
    return Point(points[0][-1].x, fmean(ends), min(ends), max(ends))
