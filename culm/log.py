"""Messages and progress bars for the person at the terminal, from the first rank only."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Stream:
    """Standard error, whatever becomes of it: a full disk or a closed pipe costs the messages and
    not the work.
    """

    @property
    def _now(self) -> TextIO:
        """While rich shows a bar, it puts a file around standard error that prints by `console`."""
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    @property
    def encoding(self) -> str:
        return "utf-8" if sys.stderr is None else self._now.encoding

    def write(self, text: str) -> int:
        # AttributeError: it is None, as in a process without streams; ValueError: it is closed.
        with suppress(OSError, ValueError, AttributeError):
            self._now.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            self._now.flush()

    def isatty(self) -> bool:
        return sys.stderr is not None and self._now.isatty()

    def fileno(self) -> int:
        return self._now.fileno()


# Standard error, so that the result of a verb can be piped.
console = Console(file=cast(IO[str], Stream()), highlight=False)
SECONDS_BETWEEN_LINES = 30.0  # without a terminal, lines instead of a bar


def is_first_rank() -> bool:
    """Whether this process prints; torchrun numbers processes by RANK."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """One line (or paragraph) for the person at the terminal."""
    if is_first_rank():
        console.print(text, markup=False, soft_wrap=True)


def say_at_once(text: str) -> None:
    """From a signal handler, or a thread of a process that hangs: past the streams of Python, of
    which the main thread may be in the middle.
    """
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


class Rate(ProgressColumn):
    """Units per second, with thousands separated."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "")
        decimals = 1 if speed and speed < 10 else 0
        return Text(f"{speed:,.{decimals}f} {unit}/s" if speed and unit else "", style="cyan")


class Share(ProgressColumn):
    """Percent done, if the total is known."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.percentage:>3.0f}%" if task.total else "")


class Bar:
    """A running progress bar: `advance(amount)` and a short `note` such as the loss.

    Without a terminal, as in the log of a cluster, it prints a line now and then.
    """

    def __init__(self, progress: Progress, total: float | None, label: str, unit: str) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=total, unit=unit, note="")
        self._said = time.monotonic()

    def advance(self, amount: float, note: str | None = None) -> None:
        fields = {} if note is None else {"note": note}
        self._progress.update(self._task, advance=amount, **fields)  # type: ignore[arg-type]
        now = time.monotonic()
        if not console.is_terminal and now - self._said > SECONDS_BETWEEN_LINES:
            self._said, task = now, self._progress.tasks[0]
            whole = f" of {task.total:,.0f}" if task.total else ""
            say(f"{task.description}: {task.completed:,.0f}{whole} {task.fields['note']}")

    def finish(self) -> None:
        """Show 100 %, also if the total was unknown."""
        task = self._progress.tasks[0]
        if task.total is None:
            whole = max(task.completed, 1)
            self._progress.update(self._task, total=whole, completed=whole)


@contextmanager
def progress(label: str, total: float | None, unit: str) -> Iterator[Bar]:
    """A bar with rate and time left; silent on other ranks, lines without a terminal."""
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=28),
        Share(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not is_first_rank(), transient=False) as bars:
        bar = Bar(bars, total, label, unit)
        yield bar
        bar.finish()
