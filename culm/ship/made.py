"""How a model was made, for its card: stages in order, and the data of each, without places.

The record of a model (`culm.lineage`) has paths of the machine on which it was made. What leaves it
has names and digests only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from culm.convert.load import HUB_ID
from culm.eval.report import table
from culm.lineage import Content, Lineage

SHOWN = 12  # digits of a digest
WINDOWS = re.compile(r"[A-Za-z]:[\\/]")
SETTING = re.compile(r"[A-Za-z_][\w.-]*=")  # the name in `data.path=texts`
INNER = re.compile(r"[^\s,{}\[\]\"']+")  # the words in `{kind: text, path: texts}`


class Stage(NamedTuple):
    """A command that made a model. data: name, digest and cleaning of what it learned from."""

    what: str
    data: list[tuple[str, str, str]]


def stages_of(made: Lineage) -> list[Stage]:
    """All commands from the first model on; one that made several inputs is listed once."""
    found: dict[str, Stage] = {}
    _collect(made, found)
    return list(found.values())


def _collect(made: Lineage, found: dict[str, Stage]) -> None:
    for model in made.models.values():
        if isinstance(model, Lineage):
            _collect(model, found)
    found.setdefault(repr((made.files, made.command)), Stage(_what(made), list(_data(made))))


def _what(made: Lineage) -> str:
    if not made.settings:
        return f"`culm {' '.join(_word(word) for word in made.command)}`"
    train = made.settings.get("train") or {}
    optimizer = train.get("optimizer")
    facts = {
        "objective": _kind(train.get("objective")), "steps": train.get("steps"),
        "batch size": train.get("batch_size"), "optimizer": _kind(optimizer),
        "learning rate": optimizer.get("rate") if isinstance(optimizer, Mapping) else None,
        "adapter": _kind(train.get("adapter")), "seed": made.settings.get("seed"),
        "processes": made.ranks,
    }  # fmt: skip
    known = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    return f"`culm train`: {known}"


def _kind(part: Any) -> Any:
    return part.get("kind") if isinstance(part, Mapping) else part


def _data(made: Lineage) -> Iterator[tuple[str, str, str]]:
    for corpus in made.corpora:
        cleaned = ", ".join(corpus.cleaning)
        for file in corpus.origin:
            yield _word(file.path), (file.sha256 or "")[:SHOWN], cleaned
        if not corpus.origin:
            yield f"tokens of {_word(corpus.path)}", corpus.manifest[:SHOWN], cleaned
    for file in made.streams:
        yield _word(file.path), (file.sha256 or "")[:SHOWN], ""


def bases_of(made: Lineage) -> list[str]:
    """Names on the hub of the models from which the first stage started."""
    found = []
    for model in made.models.values():
        if isinstance(model, Lineage):
            found += bases_of(model)
        elif HUB_ID.fullmatch(model.path):
            found.append(model.path)
    return list(dict.fromkeys(found))


def made_text(made: Lineage) -> str:
    """Sections of Markdown: the stages, and their data."""
    stages = stages_of(made)
    steps = "\n".join(f"{number}. {stage.what}" for number, stage in enumerate(stages, 1))
    rows = [(str(n), *row) for n, stage in enumerate(stages, 1) for row in stage.data]
    parts = ["## How it was made", steps]
    if rows:
        head = ("stage", "data", "SHA-256", "cleaned by")
        parts += ["## Data", table(head, rows)]
    if read := list(dict.fromkeys(_models_read(made))):
        parts.append("It also read: " + ", ".join(f"`{name}`" for name in read) + ".")
    return "\n\n".join(parts)


def _models_read(made: Lineage) -> Iterator[str]:
    for setting, model in made.models.items():
        if isinstance(model, Lineage):
            yield from _models_read(model)
        elif isinstance(model, Content):
            yield f"{_word(model.path)} ({setting})"


def public(made: Lineage) -> dict[str, Any]:
    """The record itself with names in place of paths outside the folder of its commands."""
    return _without_places({**made.model_dump(mode="json", exclude_defaults=True)})


def _without_places(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {_word(name): _without_places(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_places(one) for one in value]
    if not isinstance(value, str):
        return value
    return "." if key == "directory" else _word(value)


def _word(text: str) -> str:
    """A word of a command. Of a path outside the working directory only the name stays."""
    if setting := SETTING.match(text):
        return setting[0] + _word(text[setting.end() :])
    if text.startswith(("{", "[")):
        return INNER.sub(lambda found: _word(found[0]), text)
    if WINDOWS.match(text):
        return PureWindowsPath(text).name
    if text.startswith(("/", "~", "file:")) or ".." in PurePosixPath(text).parts:
        return PurePosixPath(text).name
    return text
