"""Plots of a report, readable in print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from torch import Tensor

from culm.eval.curves import Group, Panel, Point
from culm.eval.inspection import Spread
from culm.eval.interval import student

mpl.use("Agg")
import matplotlib.pyplot as plt

COLOURS = (
    "#1b6b4c", "#c0792a", "#4a5fa5", "#a53f5b", "#7a6fb0", "#5d8a2f", "#3b8ea5", "#8a6b4c",
)  # fmt: skip
STYLE: dict[Any, Any] = {
    "figure.figsize": (7.2, 3.4),
    "figure.dpi": 130,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # names of runs and tokens may have dollar signs
}
SMOOTHED = 60  # longer curves show a running mean on top of the raw values

Points = Sequence[tuple[float, float]]


def lines(path: Path, curves: Mapping[str, Points], x: str, y: str) -> None:
    """A curve per name; long ones show a running mean on top of the raw values."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        for colour, (name, points) in zip(cycle(COLOURS), curves.items(), strict=False):
            xs, ys = [p[0] for p in points], [p[1] for p in points]
            if len(points) > SMOOTHED:
                axes.plot(xs, ys, color=colour, alpha=0.25, linewidth=0.8)
                ys = _smooth(ys)
            axes.plot(xs, ys, color=colour, label=name, linewidth=1.8)
        axes.set(xlabel=x, ylabel=y)
        if len(curves) > 1:
            axes.legend()
        _write(figure, path)


def bands(path: Path, panels: Mapping[str, Mapping[str, Sequence[Point]]], x: str) -> None:
    """A panel for each metric; a curve shows the mean of its runs, and a band their range."""
    size = {"figure.figsize": (7.2, 3.0 * len(panels))}
    with plt.rc_context(STYLE | size):
        figure, every = plt.subplots(len(panels), squeeze=False, sharex=True)
        for axes, (metric, curves) in zip(every.flat, panels.items(), strict=True):
            for number, (name, points) in enumerate(curves.items()):
                _band(axes, points, number, name)
            axes.set_ylabel(metric)
        every.flat[-1].set_xlabel(x)
        if len(next(iter(panels.values()))) > 1:
            every.flat[0].legend()
        _write(figure, path)


def comparison(path: Path, panels: Sequence[Panel], metric: str, x: str) -> None:
    """Where the groups of each panel end: a dot a run, and the mean with its 95 % interval. To the
    left, their curves, if they were measured on the way too. A name has one colour in all panels.
    """
    groups = [group for panel in panels for group in panel.groups]
    names = list(dict.fromkeys(group.name for group in groups))
    columns = 2 if any(len(group.curve) > 2 for group in groups) else 1
    tall = [max(2.4, 0.6 + 0.26 * len(panel.groups)) for panel in panels]
    with plt.rc_context(STYLE | {"figure.figsize": (4.8 * columns, sum(tall))}):
        figure, rows = plt.subplots(len(panels), columns, squeeze=False, height_ratios=tall)
        for axes, panel in zip(rows, panels, strict=True):
            numbered = [(names.index(group.name), group) for group in panel.groups]
            if columns == 2:
                for number, group in numbered:
                    _band(axes[0], group.curve, number, group.name)
                axes[0].set(xlabel=x, ylabel=metric, title=panel.title)
            _ends(axes[-1], numbered)
            axes[-1].set(xlabel=f"{metric} at the end", title=panel.title)
        _write(figure, path)


def _ends(axes: Any, groups: Sequence[tuple[int, Group]]) -> None:
    """A line for each group, with the number of its colour."""
    for place, (number, group) in enumerate(groups):
        colour, end = COLOURS[number % len(COLOURS)], student(group.ends)
        if end.items > 1:
            axes.plot([end.low, end.high], [place] * 2, color=colour, linewidth=1.4)
        axes.plot(group.ends, [place] * end.items, "o", color=colour, alpha=0.5, ms=4)
        axes.plot(end.value, place, "|", color=colour, ms=12, mew=2)
    axes.set_yticks(range(len(groups)), [group.name for _, group in groups])
    axes.invert_yaxis()


def _band(axes: Any, points: Sequence[Point], number: int, name: str) -> None:
    """A curve with its range. number: of its colour."""
    colour, dashes = COLOURS[number % len(COLOURS)], "-" if number < len(COLOURS) else "--"
    xs, means = [p.x for p in points], [p.mean for p in points]
    least, greatest = [p.least for p in points], [p.greatest for p in points]
    if len(points) > SMOOTHED:
        means, least, greatest = map(_smooth, (means, least, greatest))
    dot = "o" if len(points) == 1 else ""
    axes.plot(xs, means, dashes, marker=dot, color=colour, label=name, linewidth=1.6)
    axes.fill_between(xs, least, greatest, color=colour, alpha=0.15, linewidth=0)


def bars(path: Path, models: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Exact match by task: a bar per model, with its 95 % interval."""
    tasks = list(next(iter(models.values())))
    width = 0.8 / len(models)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        for index, (name, scores) in enumerate(models.items()):
            values = [100 * scores[task]["value"] for task in tasks]
            below = [v - 100 * scores[t]["low"] for v, t in zip(values, tasks, strict=True)]
            above = [100 * scores[t]["high"] - v for v, t in zip(values, tasks, strict=True)]
            places = [
                place + (index - (len(models) - 1) / 2) * width for place in range(len(tasks))
            ]
            axes.bar(
                places, values, width * 0.92, label=name, color=COLOURS[index % len(COLOURS)],
                yerr=[below, above], error_kw={"linewidth": 0.8, "ecolor": "#444444"},
            )  # fmt: skip
        axes.set_xticks(range(len(tasks)), tasks, rotation=20, ha="right")
        axes.set(ylabel="exact match, %", ylim=(0, 105))
        axes.grid(axis="x", visible=False)
        axes.legend(ncols=len(models), loc="upper center", bbox_to_anchor=(0.5, 1.14))
        _write(figure, path)


def expected(
    path: Path,
    seen: Points,
    curve: Points,
    x: str,
    y: str,
    names: tuple[str, str] = ("expected", "seen"),
    log: Literal["", "x", "y", "xy"] = "",
) -> None:
    """Measured points on top of the curve that was expected. log: the axes with logarithms."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        axes.plot(*zip(*curve, strict=True), "--", color="#777777", label=names[0])
        axes.plot(*zip(*seen, strict=True), "o", color=COLOURS[0], markersize=5, label=names[1])
        axes.set(xlabel=x, ylabel=y)
        axes.set(**{f"{axis}scale": "log" for axis in log})
        axes.legend()
        _write(figure, path)


def table(
    path: Path,
    values: Tensor,
    x: str,
    y: str,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    title: str = "",
    numbers: bool = False,
) -> None:
    """values: (rows, columns) as colours, such as a mask or a routing. numbers: written in them."""
    tall, wide = values.shape
    size = (min(10.0, 1.8 + 0.42 * wide), min(7.0, 1.4 + 0.34 * tall))
    with plt.rc_context(STYLE | {"axes.grid": False, "figure.figsize": size}):
        figure, axes = plt.subplots()
        drawn = axes.imshow(values.float().numpy(), cmap="Greens", aspect="auto")
        if numbers:
            middle = float(values.min() + values.max()) / 2
            for (at, over), value in zip(np.ndindex(tall, wide), values.flatten(), strict=True):
                colour = "white" if value > middle else "black"
                axes.text(
                    over, at, f"{value:.2g}", ha="center", va="center", fontsize=7, color=colour
                )
        else:
            figure.colorbar(drawn)
        if columns:
            axes.set_xticks(range(wide), columns, rotation=90 if wide > 12 else 0)
        if rows:
            axes.set_yticks(range(tall), rows)
        axes.set(xlabel=x, ylabel=y)
        axes.set_title(title, fontsize=9)
        _write(figure, path)


def columns(path: Path, values: Mapping[str, float], x: str, y: str, level: float = 0.0) -> None:
    """A bar for each name. level: where a line is, if not 0."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        axes.bar(range(len(values)), list(values.values()), color=COLOURS[0])
        if level:
            axes.axhline(level, linestyle="--", color="#777777")
        axes.set_xticks(range(len(values)), list(values))
        axes.set(xlabel=x, ylabel=y)
        axes.grid(axis="x", visible=False)
        _write(figure, path)


def attention(path: Path, weights: Tensor, tokens: Sequence[str], title: str) -> None:
    """weights: (H, T, T), one map per head; row t is what token t attends to."""
    heads, columns = weights.shape[0], min(weights.shape[0], 4)
    rows = -(-heads // columns)
    with plt.rc_context(STYLE | {"axes.grid": False, "figure.figsize": (10.5, 3.2 * rows)}):
        figure, panels = plt.subplots(rows, columns, sharey=True, squeeze=False)
        for axes in panels.flat[heads:]:
            axes.set_visible(False)
        for head, axes in enumerate(panels.flat[:heads]):
            axes.imshow(weights[head].numpy(), cmap="Greens", vmin=0, vmax=1)
            axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=6)
            axes.set_yticks(range(len(tokens)), tokens, fontsize=6)
            axes.set_title(f"{title}, head {head}", fontsize=8)
            axes.set_xlabel("token that is read", fontsize=7)
        for axes in panels[:, 0]:
            axes.set_ylabel("token that reads", fontsize=7)
        _write(figure, path)


def lens(
    path: Path,
    chances: Tensor,
    words: Sequence[Sequence[str]],
    layers: Sequence[str],
    tokens: Sequence[str],
) -> None:
    """chances: (L, T), probability of the top next token; words: that token."""
    size = {"figure.figsize": (1.2 + 0.7 * len(tokens), 0.8 + 0.3 * len(layers))}
    with plt.rc_context(STYLE | {"axes.grid": False} | size):
        figure, axes = plt.subplots()
        axes.imshow(chances.numpy(), cmap="Greens", vmin=0, vmax=1, aspect="auto")
        for y, row in enumerate(words):
            for x, word in enumerate(row):
                colour = "white" if chances[y, x] > 0.6 else "black"
                axes.text(x, y, word, ha="center", va="center", fontsize=6, color=colour)
        axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=6)
        axes.set_yticks(range(len(layers)), layers, fontsize=6)
        axes.set_xlabel("token that is read last", fontsize=7)
        axes.set_ylabel("predicted after", fontsize=7)
        _write(figure, path)


def histograms(path: Path, spreads: Sequence[tuple[str, Spread]]) -> None:
    """A small panel each, with logarithmic counts."""
    columns = 3
    rows = -(-len(spreads) // columns)
    with plt.rc_context(STYLE | {"figure.figsize": (8, 1.6 * rows), "font.size": 7}):
        figure, panels = plt.subplots(rows, columns, squeeze=False)
        for axes in panels.flat[len(spreads) :]:
            axes.set_visible(False)
        for axes, (name, found) in zip(panels.flat, spreads, strict=False):
            axes.stairs(found.counts.numpy(), found.edges.numpy(), fill=True, color=COLOURS[0])
            axes.set_yscale("log")
            axes.set_title(f"{name}, std {found.std:.2g}", fontsize=7)
        figure.supxlabel("value", fontsize=7)
        figure.supylabel("count", fontsize=7)
        _write(figure, path)


def _smooth(values: Sequence[float], share: float = 0.95) -> list[float]:
    """Exponential running mean, corrected for its start."""
    mean, weight, smooth = 0.0, 0.0, []
    for value in values:
        mean, weight = share * mean + (1 - share) * value, share * weight + 1 - share
        smooth.append(mean / weight)
    return smooth


def _write(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, bbox_inches="tight")  # long labels are not clipped
    plt.close(figure)
