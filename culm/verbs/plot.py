"""`culm plot RUN...`: curves of metrics, to compare runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from rich.console import Console
from rich.table import Table

from culm.config import SettingError
from culm.eval.curves import Axis, curve_of, grouped, last, read_measured
from culm.files import refuse_existing

KINDS = (".png", ".svg", ".pdf")


def show_plot(
    runs: Sequence[str], metrics: Sequence[str], out: str, over: str, overwrite: bool
) -> None:
    """Draw a panel for each metric, with a curve for each group of runs, and print the last values.

    metrics: the reward, or the loss where there is none, unless given.

    Raises:
        SettingError: a folder is no run, or has no such metric.
    """
    if Path(out).suffix not in KINDS:
        raise SettingError(f"--out: {out!r} ends in none of {', '.join(KINDS)}")
    if over not in get_args(Axis):
        raise SettingError(f"--over: {over!r} is not one of {', '.join(get_args(Axis))}")
    axis = cast(Axis, over)
    refuse_existing(Path(out), overwrite)
    read = [
        read_measured(path) for path in {Path(run).resolve(): Path(run) for run in runs}.values()
    ]
    groups = grouped(read)
    if not metrics:
        metrics = ["reward"] if all("reward" in run.values for run in read) else ["loss"]
    curves = {
        metric: {name: curve_of(members, metric, axis) for name, members in groups.items()}
        for metric in metrics
    }
    from culm.eval.plots import bands

    Path(out).parent.mkdir(parents=True, exist_ok=True)
    bands(Path(out), curves, axis)
    table = Table("runs", "seeds", *metrics, box=None)
    for name, members in groups.items():
        cells = []
        for metric in metrics:
            end = last(members, metric)
            spread = f" ({end.least:.4g} - {end.greatest:.4g})" if end and len(members) > 1 else ""
            cells.append("" if end is None else f"{end.mean:.4g}{spread}")
        table.add_row(name, str(len(members)), *cells)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(out)
