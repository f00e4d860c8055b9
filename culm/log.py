"""What a person sees: one-line messages and progress bars, from the first rank only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

# Standard error, so that what a verb prints as its result can be piped.
console = Console(stderr=True, highlight=False)


def is_first_rank() -> bool:
    """Whether this process speaks; torchrun numbers processes by RANK."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """One line (or paragraph) for the person at the terminal."""
    if is_first_rank():
        console.print(text, markup=False, soft_wrap=True)


class Rate(ProgressColumn):
    """Units per second, with thousands separated."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "")
        return Text(f"{speed:,.0f} {unit}/s" if speed else "", style="cyan")


class Bar:
    """A running progress bar: `advance(amount)` and a short `note` such as the loss."""

    def __init__(self, progress: Progress, total: float | None, label: str, unit: str) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=total, unit=unit, note="")

    def advance(self, amount: float, note: str | None = None) -> None:
        fields = {} if note is None else {"note": note}
        self._progress.update(self._task, advance=amount, **fields)  # type: ignore[arg-type]


@contextmanager
def progress(label: str, total: float | None, unit: str) -> Iterator[Bar]:
    """A bar with rate and time left; silent on other ranks, plain where there is no terminal."""
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=28),
        TextColumn("{task.percentage:>3.0f}%"),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not is_first_rank(), transient=False) as bars:
        yield Bar(bars, total, label, unit)
