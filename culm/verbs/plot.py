"""`culm plot RUN...`: curves of metrics, to compare runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import cast, get_args

from rich.console import Console
from rich.table import Table

from culm import log
from culm.config import SettingError
from culm.eval.curves import (
    Axis,
    NothingMeasured,
    Run,
    curve_of,
    ends,
    grouped,
    measured,
    one_of_each_seed,
    read_measured,
    sound,
)  # fmt: skip
from culm.files import refuse_existing
from culm.train.run_folder import SETTINGS

KINDS = (".png", ".svg", ".pdf")


def show_plot(
    runs: Sequence[str], metrics: Sequence[str], out: str, over: str, overwrite: bool
) -> None:
    """Draw a panel for each metric, with a curve for each group of runs, and print the last values.
    Runs that lack a metric have no curve in its panel, and are named.

    metrics: the reward, or the loss where there is none, unless given.

    Raises:
        SettingError: a folder is no run, or no run has the metric.
    """
    axis = checked(out, over, overwrite)
    read = read_once(runs)
    groups = {name: one_of_each_seed(members) for name, members in grouped(read).items()}
    if not metrics:
        metrics = ["reward"] if all("reward" in run.values for run in read) else ["loss"]
    kept = [run for members in groups.values() for run in members]
    curves = {}
    for metric in metrics:
        known = measured(kept, metric)
        having = {name: [run for run in own if run in known] for name, own in groups.items()}
        curves[metric] = {
            name: curve_of(_shown(own, metric), metric, axis) for name, own in having.items() if own
        }
    from culm.eval.plots import bands

    bands(Path(out), curves, axis)
    table = Table("runs", "seeds", *metrics, box=None)
    for name, members in groups.items():
        table.add_row(name, str(len(members)), *(_end(members, metric) for metric in metrics))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    console.print(out)


def _shown(runs: Sequence[Run], metric: str) -> Sequence[Run]:
    """Those that did not diverge; if all did, all that have a curve up to there."""
    return sound(runs, metric) or [run for run in runs if metric in run.values] or runs


def _end(runs: Sequence[Run], metric: str) -> str:
    """The mean of the last values and their range, and how many runs have none."""
    runs = [run for run in runs if metric in run.values or metric in run.diverged]
    left = sound(runs, metric)
    found = ends(left, metric) if left else []
    spread = f" ({min(found):.4g} - {max(found):.4g})" if len(found) > 1 else ""
    parts = [f"{fmean(found):.4g}{spread}"] if found else []
    if lost := len(runs) - len(left):
        parts.append(f"{lost} diverged")
    return ", ".join(parts)


def checked(out: str, over: str, overwrite: bool) -> Axis:
    """The axis, after a look at what the picture would be.

    Raises:
        SettingError: such a picture cannot be written, or exists.
    """
    if Path(out).suffix not in KINDS:
        raise SettingError(f"--out: {out!r} ends in none of {', '.join(KINDS)}")
    if over not in get_args(Axis):
        raise SettingError(f"--over: {over!r} is not one of {', '.join(get_args(Axis))}")
    refuse_existing(Path(out), overwrite)
    return cast(Axis, over)


def read_once(folders: Sequence[str]) -> list[Run]:
    """What the runs measured, or those in a folder of runs. One that is named twice counts once.
    In a folder of runs, those that have measured nothing yet are left out.

    Raises:
        SettingError: a folder is no run and has none, or a run has measured nothing.
    """
    once: dict[Path, Run] = {}
    for folder in map(Path, folders):
        if (folder / SETTINGS).is_file() or not (inner := sorted(folder.glob(f"*/{SETTINGS}"))):
            once.setdefault(folder.resolve(), read_measured(folder))
            continue
        for path in inner:
            try:
                once.setdefault(path.parent.resolve(), read_measured(path.parent))
            except NothingMeasured as error:
                log.say(f"Left out: {error}")
    if not once:
        raise NothingMeasured(f"{', '.join(folders)}: no run has measured anything yet")
    return list(once.values())
