"""`culm train RUN --seeds 3 --sweep NAME=A,B`: one run for each value and seed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import typer

from culm import log
from culm.config import SettingError
from culm.exits import Refused
from culm.verbs.any_run import read_any_run
from culm.verbs.train import train_run

CLOSING = {"[": "]", "{": "}", "(": ")"}


def train_series(
    run: str, settings: Sequence[str], seeds: int | None, sweep: Sequence[str]
) -> None:
    """Train the runs one after another; the same command resumes an interrupted series.

    All of them are read before the first one starts.

    Raises:
        Refused: a run cannot be used, or this is one of several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise Refused("--seeds and --sweep train on one process; launch each run on its own")
    try:
        series = list(members(run, settings, seeds, sweep))
    except SettingError as error:
        raise Refused(str(error)) from error
    for number, (folder, given) in enumerate(series, 1):
        log.say(f"Run {number} of {len(series)}: {folder}")
        train_run(run, given)
    typer.echo(f"Compare them: culm compare {Path(series[0][0]).parent}")


def members(
    run: str, settings: Sequence[str], seeds: int | None, sweep: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """The folder of each run, such as `FOLDER/rate=1e-3-seed-0`, and its settings.

    Raises:
        SettingError: an option has no values, or a run cannot be used.
    """
    swept: list[list[tuple[str, str]]] = []
    for option in sweep:
        name, found, values = option.partition("=")
        if not found or not name or not all(parts := split(values)):
            raise SettingError(f"--sweep: {option!r} is not NAME=VALUE,VALUE")
        swept.append([(name, value) for value in parts])
    base, _ = read_any_run(run, list(settings))
    replaced = ("folder", *(() if seeds is None else ("seed",)))
    shared = [one for one in settings if one.partition("=")[0] not in replaced]
    if seeds is not None:
        swept.append([("seed", str(base.seed + number)) for number in range(seeds)])
    for chosen in product(*swept):
        words = [f"{name.split('.')[-1]}={value}" for name, value in chosen]
        named = "-".join(words).replace("seed=", "seed-").replace("/", "_").replace(" ", "")
        folder = f"{base.folder}/{named}"
        given = [*shared, *(f"{name}={value}" for name, value in chosen), f"folder={folder}"]
        read_any_run(run, given)
        yield folder, given


def split(values: str) -> list[str]:
    """At the commas that are in no bracket: `a,{kind: b, c: 1}` has two values."""
    parts, open_brackets = [""], list[str]()
    for letter in values:
        if letter in CLOSING:
            open_brackets.append(CLOSING[letter])
        elif open_brackets and letter == open_brackets[-1]:
            open_brackets.pop()
        if letter == "," and not open_brackets:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
