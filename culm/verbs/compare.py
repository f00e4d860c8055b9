"""`culm compare RUN...`: which runs end better, over seeds, and how they came there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from culm import log
from culm.config import SettingError, did_you_mean
from culm.eval.curves import (
    Axis,
    Group,
    Panel,
    Run,
    curve_of,
    depends_on_text,
    ends,
    grouped,
    measured,
    one_of_each_seed,
    sound,
    without_seed,
)
from culm.eval.interval import student
from culm.verbs.format import flops
from culm.verbs.plot import checked, read_once

SHOWN = 12  # digits of a digest in the name of a panel


def show_compare(
    runs: Sequence[str],
    metric: str,
    out: str,
    over: str | None,
    panels: str | None,
    overwrite: bool,
) -> None:
    """Draw curves with a band over seeds and where they end, and print a table, from the least
    value on. Runs that diverged or lack the metric are left out and named.

    over: by default FLOPs, or steps where a run could not count its FLOPs.
    panels: a setting; runs that have another value of it are compared on their own. `folder`: the
    folder in which the runs lie. Where the metric is of the text of a run, so are runs of other
    texts.

    Raises:
        SettingError: a folder is no run, no run has the metric or setting, or all runs diverged.
    """
    read = _finished(read_once(runs))
    if not any(metric in run.values or metric in run.diverged for run in read):
        metric = metric.replace("-", "_")
    read = _converged(measured(read, metric), metric)
    known = all(run.flops is not None for run in read)
    axis = checked(out, over or ("flops" if known else "step"), overwrite)
    found = list(_panels(read, metric, axis, panels))
    from culm.eval.plots import comparison

    comparison(Path(out), found, metric, axis)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for panel in found:
        table = Table(panel.title or "runs", "seeds", metric, "95 %", "training", box=None)
        for group in panel.groups:
            end = student(group.ends)
            half = f"± {end.high - end.value:.4f}" if end.items > 1 else ""
            compute = "" if group.flops is None else flops(group.flops)
            table.add_row(group.name, str(end.items), f"{end.value:.4f}", half, compute)
        console.print(table)
    console.print(out)


def _finished(runs: Sequence[Run]) -> list[Run]:
    """Without those that still train, whose last value is no end; they are named.

    Raises:
        SettingError: all of them still train.
    """
    found = [run for run in runs if (run.folder / "results.json").exists()]
    if len(found) < len(runs):
        left = ", ".join(str(run.folder) for run in runs if run not in found)
        log.say(f"Not finished, and left out: {left}")
    if not found:
        raise SettingError("no run is finished; culm plot shows how far they are")
    return found


def _converged(runs: Sequence[Run], metric: str) -> list[Run]:
    """Without those that diverged; they are named.

    Raises:
        SettingError: all of them did.
    """
    found = sound(runs, metric)
    if len(found) < len(runs):
        left = ", ".join(str(run.folder) for run in runs if run not in found)
        log.say(f"Diverged (the last {metric} is no finite number), and left out: {left}")
    if not found:
        raise SettingError(f"--metric: the last {metric} of every run is no finite number")
    return found


def _panels(runs: Sequence[Run], metric: str, axis: Axis, setting: str | None) -> Iterator[Panel]:
    """A panel for each value of the setting, and for each text if the metric is of one; its groups
    from the least value on.
    """
    if setting not in (None, "folder") and not any(setting in run.settings for run in runs):
        known = did_you_mean(setting, sorted({name for run in runs for name in run.settings}))
        raise SettingError(f"--panels: these runs have no setting {setting!r}{known}")
    split: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        split.setdefault(_values(run, setting), []).append(run)
    panels = [part for own in split.values() for part in _by_text(own, metric, setting)]
    titles = _titles([shown for shown, _ in panels])
    for title, (_, own) in zip(titles, panels, strict=True):
        groups = [
            Group(name, curve_of(members, metric, axis), ends(members, metric), _flops(members))
            for name, members in ((n, one_of_each_seed(m)) for n, m in grouped(own).items())
        ]
        if empty := next((group.name for group in groups if not group.ends), None):
            raise SettingError(f"--metric: the runs of {empty} have no step of it in common")
        yield Panel(title, sorted(groups, key=lambda group: student(group.ends).value))


def _by_text(
    runs: Sequence[Run], metric: str, setting: str | None
) -> list[tuple[tuple[str, ...], list[Run]]]:
    """The runs of a panel, divided by their texts if the metric is of these, and their names."""
    texts: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        texts.setdefault(run.text if depends_on_text(run, metric) else (), []).append(run)
    shown = _shown(runs[0], setting)
    if len(texts) == 1:
        return [(shown, list(runs))]
    log.say(
        f"These runs have {len(texts)} different texts; {metric} is compared for each by itself."
    )
    names = [_named_text(own[0]) for own in texts.values()]
    if len(set(names)) < len(names):  # files that changed
        names = [(*name, text[0][:SHOWN]) for name, text in zip(names, texts, strict=True)]
    return [((*shown, *name), own) for name, own in zip(names, texts.values(), strict=True)]


def _named_text(run: Run) -> tuple[str, ...]:
    given = (
        name for name in ("data.path", "data.prepared", "data.tasks") if run.settings.get(name)
    )
    return _values(run, next(given, None))


def _values(run: Run, setting: str | None) -> tuple[str, ...]:
    """What decides the panel of a run."""
    if setting is None:
        return ()
    if setting == "folder":
        return (str(run.folder.resolve().parent),)
    value = run.settings.get(setting)
    return tuple(map(str, value if isinstance(value, list | tuple) else [value]))


def _shown(run: Run, setting: str | None) -> tuple[str, ...]:
    """What names the panel of a run: of a setting that is a run, its folder without the seed."""
    if setting is not None and setting in run.reads:
        return (str(without_seed(run.reads[setting])),)
    return _values(run, setting)


def _titles(panels: Sequence[tuple[str, ...]]) -> list[str]:
    """The values of each panel: of paths the last names, if these differ."""
    short = [", ".join(Path(one).name or one for one in values) for values in panels]
    return short if len(set(short)) == len(short) else [", ".join(values) for values in panels]


def _flops(runs: Sequence[Run]) -> float | None:
    """The mean of the runs, if all of them could count theirs."""
    known = [run.flops for run in runs if run.flops is not None]
    return sum(known) / len(known) if len(known) == len(runs) else None
