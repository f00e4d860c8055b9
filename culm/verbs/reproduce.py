"""`culm reproduce`: the commands that make a model again, in a folder of their own."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
import yaml

from culm.convert.load import find_model
from culm.files import refuse_existing
from culm.lineage import CorpusRecord, Lineage, read_lineage, unreproducible

SCRIPT = "reproduce.sh"


@dataclass
class _Script:
    """commands: in order. made: where each thing is made again, by what identifies it. notes: what
    is read as it is, since nothing says how it was made.
    """

    out: Path
    commands: list[str] = field(default_factory=list)
    made: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    directory: str = ""

    def add(self, directory: str, *words: str) -> None:
        if directory != self.directory:
            self.commands.append(f"cd {shlex.quote(directory)}")
            self.directory = directory
        self.commands.append(shlex.join(words))

    def next(self, name: str) -> Path:
        """A path for what is made next."""
        return self.out / f"{len(self.made) + 1}-{name}"


def write_reproduction(model: str, out: str, overwrite: bool = False) -> None:
    """Write a script and the run files that it needs to a folder, and print the commands.

    Raises:
        SettingError: there is no record of the model, or something is in the folder.
    """
    place = find_model(model)
    known = read_lineage(place) if place.exists() else None
    if known is None:
        raise unreproducible(model)
    folder = Path(out).absolute()
    refuse_existing(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    script = _Script(folder)
    last = _make(script, known)
    lines = ["#!/bin/sh", "set -e", *(f"# {note}" for note in script.notes), *script.commands]
    (folder / SCRIPT).write_text("\n".join([*lines, f"# {last}"]) + "\n", encoding="utf-8")
    typer.echo("\n".join(lines[2:]))


def _make(script: _Script, made: Lineage) -> str:
    """Add what makes a model again; gives its place."""
    key = json.dumps([made.files, made.command])
    if key not in script.made:
        sources = {name: _source(script, model) for name, model in made.models.items()}
        make = _train if made.settings else _convert
        script.made[key] = make(script, made, {n: s for n, s in sources.items() if s})
    return script.made[key]


def _source(script: _Script, model: Any) -> str | None:
    """Where a model is made again; None for one that is read as it is."""
    if isinstance(model, Lineage):
        return _make(script, model)
    script.notes.append(f"{model.path} is read as it is: nothing says how it was made")
    return None


def _train(script: _Script, made: Lineage, sources: dict[str, str]) -> str:
    settings = json.loads(json.dumps(made.settings))
    folders = {one.path: _prepare(script, one, made.directory) for one in made.corpora}
    folder = script.next(Path(str(settings["folder"])).name)
    settings["folder"] = str(folder)
    for setting, place in sources.items():
        _replace(settings, setting.split("."), place)
    data = settings["data"]
    if data.get("prepared"):
        data["prepared"] = folders.get(data["prepared"], data["prepared"])
    for one in data.get("mix") or ():
        one["corpus"] = folders.get(one["corpus"], one["corpus"])
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    ranks = [] if made.ranks == 1 else ["torchrun", "--nproc-per-node", str(made.ranks), "-m"]
    script.add(made.directory, *ranks, "culm", "train", str(file))
    return str(folder)


def _replace(settings: dict[str, Any], names: list[str], place: str) -> None:
    """Set a path among settings, or the path in it."""
    *outer, last = names
    for name in outer:
        settings = settings[name]
    value = settings[last]
    if isinstance(value, dict):
        value.pop("hf", None)
        value["path"] = place
    else:
        settings[last] = place


def _prepare(script: _Script, corpus: CorpusRecord, directory: str) -> str:
    """Add what prepares a corpus again, where `culm prepare` did it."""
    if not corpus.prepare:
        return corpus.path
    key = corpus.manifest
    if key not in script.made:
        out = script.next(Path(corpus.path).name)
        script.made[key] = str(out)
        tokenizer = str(Path(corpus.path) / "tokenizer")
        script.add(
            directory, "culm", "prepare", *corpus.prepare, "--quiet", "--tokenizer", tokenizer,
            "--out", str(out),
        )  # fmt: skip
        script.notes.append(f"{tokenizer} is read as it is")
    return script.made[key]


def _convert(script: _Script, made: Lineage, sources: dict[str, str]) -> str:
    """An export or a quantised model: the same command with other paths."""
    verb, source, out, *options = made.command
    target = script.next(Path(out).name)
    script.add(made.directory, "culm", verb, sources.get("source", source), str(target), *options)
    return str(target)
