"""The report of a run: plots and tables from the files in its folder."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from culm import log
from culm.eval.plots import bars, lines
from culm.files import read_lines

HELD_OUT = "bits per byte of held-out text"


def write_report(folder: Path) -> None:
    """`report.md` with its plots, from `metrics.jsonl` and `results.json`."""
    metrics = read_lines(folder / "metrics.jsonl")
    results = json.loads((folder / "results.json").read_text())
    parts = [f"# {folder.name}", _summary(metrics, results)]
    rewarded = metrics and "reward" in metrics[-1]
    name = "reward" if rewarded else "loss"
    parts += [f"**Warning.** {warning}" for warning in results.get("warnings", ())]
    draw = partial(lines, curves={folder.name: curve(metrics, name)}, x="step", y=name)
    parts.append(_picture(name, folder / f"{name}.png", draw))
    held_out = curve(read_lines(folder / "eval.jsonl"), "bits_per_byte")
    if len(held_out) > 1:
        draw = partial(lines, curves={folder.name: held_out}, x="step", y=HELD_OUT)
        parts.append(_picture("bits per byte", folder / "bits_per_byte.png", draw))
    if remarks := results.get("data"):
        parts += ["## Data", "\n".join(f"- {remark}" for remark in remarks)]
    parts += _measures(folder, results)
    parts += [
        "## Run it again",
        f"```\nculm train {quote(f'{folder}/run.yaml')} {quote(f'folder={folder}-again')}\n```",
    ]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _measures(folder: Path, results: Mapping[str, Any]) -> list[str]:
    """A section for each measure that has more to show than one number."""
    parts: list[str] = []
    for name, result in results.items():
        measure, _, kind = name.rpartition(".")
        of_measure = f", {measure}" if measure else ""
        if kind == "scores":
            picture = re.sub(r"[^\w.-]+", "-", name) + ".png"
            parts += [f"## Scores{of_measure}", score_table({folder.name: result})]
            draw = partial(bars, models={folder.name: result})
            parts.append(_picture("scores", folder / picture, draw))
        elif kind == "samples" and result:
            parts += [f"## Samples{of_measure}", samples_text(result)]
    return parts


def _picture(title: str, path: Path, draw: Callable[[Path], None]) -> str:
    """A plot as Markdown; one that fails costs no more than itself."""
    try:
        draw(path)
    except Exception as error:  # whatever a library of plots raises
        log.say(f"{path}: the plot failed: {error}")
        return f"({title}: the plot failed)"
    return f"![{title}]({path.name})"


def curve(metrics: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) of each line of a metrics file in which it is finite."""
    found = [(line["step"], line[name]) for line in metrics if name in line]
    return [(step, value) for step, value in found if math.isfinite(value)]


def _summary(metrics: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> str:
    rows: list[tuple[str, str]] = []
    if metrics:
        tokens = metrics[-1]["tokens"]
        seconds = sum(line["seconds"] for line in metrics)
        rows += [
            ("steps", f"{metrics[-1]['step']:,}"),
            ("tokens", f"{tokens:,}"),
            ("tokens per second", f"{tokens / seconds:,.0f}"),
            ("loss, first and last step", f"{metrics[0]['loss']:.3f}, {metrics[-1]['loss']:.3f}"),
        ]
    if "bits_per_byte" in results:
        rows += [
            ("held-out loss, nats per token", f"{results['loss']:.3f}"),
            ("held-out bits per byte", f"{results['bits_per_byte']:.3f}"),
        ]
    rows.append(("peak memory", f"{results['peak_bytes'] / 2**20:,.0f} MiB"))
    return table(("", ""), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; text from a model cannot break it."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in cells])


def score_table(models: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Tasks as rows, models as columns, with 95 % intervals."""
    tasks = list(dict.fromkeys(task for scores in models.values() for task in scores))
    rows = [[task, *(percent(scores[task]) for scores in models.values())] for task in tasks]
    return table(("task", *models), rows)


def percent(score: Mapping[str, float]) -> str:
    """`87.5 % (81.2 - 92.1)`."""
    return f"{100 * score['value']:.1f} % ({100 * score['low']:.1f} - {100 * score['high']:.1f})"


def samples_text(samples: Sequence[Mapping[str, Any]]) -> str:
    """Each sample with its temperature, as a code block."""
    return "\n\n".join(
        f"Temperature {s['temperature']}:\n\n````text\n{s['prompt']}{s['text']}\n````"
        for s in samples
    )
