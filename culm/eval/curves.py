"""What runs measured, as curves; runs that differ in their seed alone are one curve with a band."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import yaml

from culm import log
from culm.config import SettingError, did_you_mean
from culm.data import manifest as corpus
from culm.files import read_json, read_lines
from culm.train.run_folder import MANIFEST, SETTINGS
from culm.train.trackers.tracker import numbers

Axis = Literal["step", "tokens", "flops"]
OWN = ("folder", "seed", "device", "train.trackers")  # settings of a run that make no other curve
# At the end of a folder's name: not the 2 of `gpt2`, nor the exponent of `rate=1e-3`.
SEED = re.compile(r"[-_.]?seed[-_.]?\d*$|(?<!\de)[-_]\d+$")
OF_TEXT = ("loss", "bits_per_byte", "mrr")  # metrics whose values say as much about the text read
WINDOW = 10  # last values of a metric that are averaged; a loss differs much from step to step


class NothingMeasured(SettingError):
    """A run that has measured nothing yet."""


class Point(NamedTuple):
    """The mean over the runs of a curve, and the least and greatest of them."""

    x: float
    mean: float
    least: float
    greatest: float


class Group(NamedTuple):
    """Runs that differ in their seed alone. ends: the last value of each. flops: of training."""

    name: str
    curve: Sequence[Point]
    ends: Sequence[float]
    flops: float | None


class Panel(NamedTuple):
    """Groups that are compared with each other."""

    title: str
    groups: Sequence[Group]


@dataclass(frozen=True)
class Run:
    """A run folder. settings: by dotted names. values: of each metric, by step. tokens: by step.
    flops_per_token: of training, if the run could count them. diverged: metrics whose last value is
    no finite number; those before it say nothing about where the run ended. reads: the folders of
    the runs that settings name, by setting. seed: of the run. text: what its corpus was made from.
    """

    folder: Path
    settings: Mapping[str, Any]
    values: Mapping[str, Mapping[int, float]]
    tokens: Mapping[int, float]
    flops_per_token: float | None = None
    diverged: frozenset[str] = frozenset()
    reads: Mapping[str, Path] = field(default_factory=dict)
    seed: int | None = None
    text: tuple[str, ...] = ()

    def at(self, step: int, axis: Axis) -> float:
        """Where on an axis a step is; not finite if the run does not know that axis."""
        if axis == "step":
            return step
        factor = 1.0 if axis == "tokens" else self.flops_per_token or math.nan
        return self.tokens.get(step, math.nan if step else 0.0) * factor

    @property
    def flops(self) -> float | None:
        """Of its training so far."""
        known = self.flops_per_token is not None and self.tokens
        return self.at(max(self.tokens), "flops") if known else None


def read_measured(folder: Path) -> Run:
    """What is in metrics.jsonl and eval.jsonl; a metric that both have is that of evaluations under
    `eval.NAME`.

    Raises:
        SettingError: it is no run, or has measured nothing yet (NothingMeasured).
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise SettingError(f"{folder}: it is no run, since it has no {SETTINGS}")
    trained, evaluated = (read_lines(folder / f"{name}.jsonl") for name in ("metrics", "eval"))
    values: dict[str, dict[int, float]] = {}
    diverged: set[str] = set()
    for line in trained:
        _note(line["step"], numbers(line), values, diverged)
    for line in evaluated:
        found = {
            f"eval.{name}" if any(name in one for one in trained) else name: value
            for name, value in numbers(line).items()
        }
        _note(line["step"], found, values, diverged)
    if not values:
        raise NothingMeasured(f"{folder}: it has measured nothing yet")
    manifest = folder / MANIFEST
    starts = (read_json(manifest).get("starts") if manifest.is_file() else None) or [{}]
    flops = starts[-1].get("flops_per_token")
    every = flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    given = _without_own(every)
    tokens = values.get("tokens", {})
    return Run(
        folder, _comparable(given), values, tokens, flops, frozenset(diverged), _runs_in(given),
        every.get("seed"), _text_of(folder, given),
    )  # fmt: skip


def _note(
    step: int, found: Mapping[str, float], values: dict[str, dict[int, float]], diverged: set[str]
) -> None:
    """Add the numbers of a line that a curve can have: not those of a step that was left out."""
    for name, value in found.items():
        if math.isfinite(value):
            values.setdefault(name, {})[step] = value
            diverged.discard(name)
        else:
            diverged.add(name)


def sound(runs: Sequence[Run], metric: str) -> list[Run]:
    """Without those that diverged, whose last value of the metric is no finite number."""
    return [run for run in runs if metric not in run.diverged]


def measured(runs: Sequence[Run], metric: str) -> list[Run]:
    """Without those that did not measure it; they are named.

    Raises:
        SettingError: none of them did.
    """
    found = [run for run in runs if metric in run.values or metric in run.diverged]
    if not found:
        known = did_you_mean(metric, sorted({name for run in runs for name in run.values}))
        raise SettingError(f"--metric: {runs[0].folder} has no {metric!r}{known}")
    if len(found) < len(runs):
        left = ", ".join(str(run.folder) for run in runs if run not in found)
        log.say(f"No {metric}, and left out: {left}")
    return found


def one_of_each_seed(runs: Sequence[Run]) -> list[Run]:
    """Without further runs of a seed, which are no further sample; they are named.

    runs: with equal settings.
    """
    first: dict[int | None, Run] = {}
    for run in runs:
        kept = first.setdefault(run.seed, run)
        if kept is not run:
            log.say(f"Left out: {run.folder}, with the settings and the seed of {kept.folder}")
    return list(first.values())


def depends_on_text(run: Run, metric: str) -> bool:
    """Whether a metric is of the text of the run, and not of one that a measure names."""
    measure, _, name = metric.rpartition(".")
    return name in OF_TEXT and run.settings.get(f"eval.measures.{measure}.kind") != "text"


def _text_of(folder: Path, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Digests of the files that a run's corpus was made from, or what its settings say of them."""
    prepared = settings.get("data.prepared")
    manifest = (folder / "data" if prepared is None else Path(prepared)) / corpus.NAME
    if manifest.is_file():
        made = read_json(manifest)
        files = sorted(one["sha256"] for one in made.get("origin", {}).values())
        return tuple(files) or (made["source"],)
    return tuple(repr(settings.get(f"data.{name}")) for name in ("path", "prepared", "tasks"))


def _given(folder: Path) -> dict[str, Any]:
    """The settings of a run that make another curve, by dotted names."""
    return _without_own(flat(yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))))


def _without_own(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in OWN}


def _runs_in(settings: Mapping[str, Any]) -> dict[str, Path]:
    """The folders of runs that settings such as `start` name."""
    texts = {name: Path(value) for name, value in settings.items() if isinstance(value, str)}
    return {name: path for name, path in texts.items() if (path / SETTINGS).is_file()}


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """In place of the folder of a run, the settings of that run, since every seed has its own."""
    read = {name: _comparable(_given(path)) for name, path in _runs_in(settings).items()}
    return {**settings, **read}


def without_seed(folder: Path) -> Path:
    """The name that a run shares with those of other seeds: `runs/a` for `runs/a/seed-1`."""
    name = SEED.sub("", folder.name)
    return folder.with_name(name) if name else folder.parent


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names; lists are values."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    parts = [flat(value, f"{prefix}.{name}" if prefix else name) for name, value in values.items()]
    return {name: value for part in parts for name, value in part.items()}


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs with the same settings, by the settings in which the groups differ, or by the names
    of their folders where these are too many to read.
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
        labels = _names(list(found.values()))
    return dict(zip(labels, found.values(), strict=True))


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """The names of folders without their seeds, such as `blt` of `blt-0` and `blt-1`, if each group
    has one of its own; else the first folder of each.
    """
    names = [{SEED.sub("", run.folder.name) for run in runs} for runs in groups]
    known = set().union(*names)
    if all(len(one) == 1 for one in names) and len(known) == len(groups) and "" not in known:
        return [one.pop() for one in names]
    return [str(runs[0].folder) for runs in groups]


def curve_of(runs: Sequence[Run], metric: str, axis: Axis = "step") -> list[Point]:
    """A metric over the steps that all these runs have, in order.

    Raises:
        SettingError: a run has no such metric, or does not know the axis.
    """
    for run in runs:
        if axis == "flops" and run.flops is None:
            raise SettingError(f"--over: {run.folder} has no FLOPs; use step or tokens")
        if axis == "tokens" and not run.tokens:
            raise SettingError(f"--over: {run.folder} has counted no tokens; use step")
        if metric not in run.values:
            known = did_you_mean(metric, list(run.values))
            raise SettingError(f"--metric: {run.folder} has no {metric!r}{known}")
    steps = sorted(set.intersection(*(set(run.values[metric]) for run in runs)))
    points = []
    for step in steps:
        values = [run.values[metric][step] for run in runs]
        x = fmean(run.at(step, axis) for run in runs)
        points.append(Point(x, fmean(values), min(values), max(values)))
    return points


def ends(runs: Sequence[Run], metric: str) -> list[float]:
    """The last value of each run, which is a mean over at most a tenth of its curve; none where
    they have no step in common.
    """
    steps = len(curve_of(runs, metric))
    count = max(1, min(WINDOW, steps // 10))
    curves = [curve_of([run], metric) for run in runs] if steps else []
    return [fmean(point.mean for point in curve[-count:]) for curve in curves]
