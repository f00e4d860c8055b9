"""`culm train RUN --seeds 3 --sweep NAME=A,B`: one run for each value and seed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import typer

from culm import log
from culm.config import SettingError
from culm.exits import Refused, RunError, is_out_of_memory, sentence_of
from culm.verbs.any_run import read_any_run
from culm.verbs.train import train_run

CLOSING = {"[": "]", "{": "}", "(": ")"}
QUOTES = "\"'"
UNSAFE = re.compile(r"[^\w.+=-]+")  # for names of folders on any system
LONGEST = 200  # characters of a name, of which file systems take 255 bytes


def train_series(
    run: str, settings: Sequence[str], seeds: int | None, sweep: Sequence[str]
) -> None:
    """Train the runs one after another; the same command resumes an interrupted series.

    All of them are read before the first one starts. One that fails on its own, as by a learning
    rate with which it diverges, does not keep the others from their training.

    Raises:
        Refused: a run cannot be used, or this is one of several processes.
        Exception: the first error of a run, after the last run.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise Refused("--seeds and --sweep train on one process; launch each run on its own")
    try:
        series = list(members(run, settings, seeds, sweep))
    except SettingError as error:
        raise Refused(str(error)) from error
    failed: list[Exception] = []
    for number, (folder, given) in enumerate(series, 1):
        log.say(f"Run {number} of {len(series)}: {folder}")
        try:
            train_run(run, given)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, Refused) or not _is_of_one_run(error):
                raise
            log.say(f"{folder} failed: {sentence_of(error)}")
            failed.append(error)
    typer.echo(f"Compare them: culm compare {shlex.quote(str(Path(series[0][0]).parent))}")
    if failed:
        log.say(f"{len(failed)} of {len(series)} runs failed; the first of them:")
        raise failed[0]


def _is_of_one_run(error: Exception) -> bool:
    """Whether other settings may train: a run diverged, or its model needs too much memory."""
    return isinstance(error, RunError) or is_out_of_memory(error)


def members(
    run: str, settings: Sequence[str], seeds: int | None, sweep: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """The folder of each run, such as `FOLDER/rate=1e-3-seed-0`, and its settings.

    Raises:
        SettingError: an option has no values, two runs would have one folder, or a run cannot be
            used.
    """
    swept = [_values(option) for option in sweep]
    names = [values[0][0] for values in swept] + ["seed"] * (seeds is not None)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SettingError(f"--sweep: {twice} has its values twice; give them once")
    # A run may be complete only with what is swept.
    base, _ = read_any_run(run, [*settings, *(f"{n}={v}" for (n, v), *_ in swept)])
    replaced = ("folder", *(() if seeds is None else ("seed",)))
    shared = [one for one in settings if one.partition("=")[0] not in replaced]
    if seeds is not None:
        swept.append([("seed", str(base.seed + number)) for number in range(seeds)])
    seen: dict[str, str] = {}
    for chosen in product(*swept):
        values = [f"{name}={value}" for name, value in chosen]
        folder = f"{base.folder}/{_folder(chosen)}"
        if folder.lower() in seen:
            raise SettingError(
                f"--sweep: {' '.join(values)} and {seen[folder.lower()]} would both be in {folder}"
            )
        seen[folder.lower()] = " ".join(values)
        # As JSON, which YAML reads as this text whatever is in it.
        given = [*shared, *values, f"folder={json.dumps(folder, ensure_ascii=False)}"]
        read_any_run(run, given)
        yield folder, given


def _values(option: str) -> list[tuple[str, str]]:
    """The name with each value of `NAME=VALUE,VALUE`."""
    name, found, values = option.partition("=")
    if not found or not name or not all(parts := split(values)):
        raise SettingError(f"--sweep: {option!r} is not NAME=VALUE,VALUE")
    if name == "folder":
        raise SettingError("--sweep: each run has its own folder below that of the run file")
    return [(name, value) for value in parts]


def _folder(chosen: Sequence[tuple[str, str]]) -> str:
    """The name of a run's folder, such as `rate=1e-3-seed-0`."""
    words = [f"{name.split('.')[-1]}={value.replace(' ', '')}" for name, value in chosen]
    named = UNSAFE.sub("_", "-".join(words).replace("seed=", "seed-")).rstrip(".")
    if len(named) <= LONGEST:
        return named
    digest = hashlib.sha256(repr(chosen).encode()).hexdigest()[:8]
    return f"{named[: LONGEST - 9]}-{digest}"


def split(values: str) -> list[str]:
    """At the commas that are in no bracket and in no quotes: `a,{kind: b, c: 1},"d,e"` has three
    values.
    """
    parts, open_brackets, quote = [""], list[str](), ""
    for letter in values:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES and (open_brackets or not parts[-1].strip()):
            quote = letter
        elif letter in CLOSING:
            open_brackets.append(CLOSING[letter])
        elif open_brackets and letter == open_brackets[-1]:
            open_brackets.pop()
        if letter == "," and not open_brackets and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
