"""What a model was made from, by content hashes: a record next to its weights, which travels along.

runs/sft/model/lineage.json     of a folder
small.gguf.lineage.json         of a file
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from culm.config import Config, SettingError, parse
from culm.files import read_json, sha256, write_json

NAME = "lineage.json"


class Content(Config):
    """A file or model that was read. sha256: None where it was not recorded, as for a stream."""

    path: str
    sha256: str | None = None


class CorpusRecord(Config):
    """A prepared corpus that a run read.

    manifest: SHA-256 of its manifest, which has those of all shards. origin: files that it was made
    from. cleaning: the stages that they went through. prepare: arguments of `culm prepare`, where
    that made it and not the run.
    """

    path: str
    manifest: str
    origin: tuple[Content, ...] = ()
    cleaning: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()


class Lineage(Config):
    """How a model was made.

    command: arguments of `culm`; of a training run only its verb, since `settings` has all of them.
    directory: where relative paths start. files: SHA-256 of each file of weights and tokenizer.
    corpora, streams: what a run learned from. models: what it read, by setting; for an export, by
    "source". ranks: processes of a run.
    """

    command: tuple[str, ...]
    directory: str
    files: dict[str, str]
    settings: dict[str, Any] = Field(default_factory=dict)
    corpora: tuple[CorpusRecord, ...] = ()
    streams: tuple[Content, ...] = ()
    models: dict[str, Lineage | Content] = Field(default_factory=dict)
    ranks: int = 1


def record_of(model: Path) -> Path:
    """Where the record of a model folder or file is."""
    return model / NAME if model.is_dir() else model.with_name(f"{model.name}.{NAME}")


def read_lineage(model: Path) -> Lineage | None:
    """The record of a model folder or file; None if it has none.

    Raises:
        SettingError: it is damaged.
    """
    path = record_of(model)
    return parse(Lineage, read_json(path), str(path)) if path.is_file() else None


def lineage_of(model: Path, name: str) -> Lineage | Content:
    """The record of a model that another one is made from; without one, what it is called. name: as
    it was given.
    """
    known = read_lineage(model)
    if known is not None:
        return known
    return Content(path=name, sha256=sha256(model) if model.is_file() else None)


def write_lineage(model: Path, command: Sequence[str], **more: Any) -> None:
    """Write the record of a model that was just made. more: as in `Lineage`."""
    made = Lineage(command=tuple(command), directory=os.getcwd(), files=digests_of(model), **more)
    write_json(record_of(model), made.model_dump(mode="json", exclude_defaults=True))


def digests_of(model: Path) -> dict[str, str]:
    """SHA-256 of each file that decides what the model does: weights, settings, tokenizer."""
    if model.is_file():
        return {model.name: sha256(model)}
    files = [one for one in sorted(model.iterdir()) if one.is_file() and _decides(one.name)]
    return {one.name: sha256(one) for one in files}


def _decides(name: str) -> bool:
    return name != NAME and not name.endswith((".md", ".lock"))


def changes_in(model: Path, files: Mapping[str, str]) -> list[str]:
    """What of the files of a model is not as it was made, each as half a sentence."""
    if not model.exists():
        return [f"{model} is gone"]
    changes = []
    for name, digest in files.items():
        file = model if model.is_file() else model / name
        if not file.is_file():
            changes.append(f"{name} is gone")
        elif sha256(file) != digest:
            changes.append(f"{name} was changed")
    return changes


def unreproducible(model: str) -> SettingError:
    """For a model without a record."""
    return SettingError(
        f"{model}: has no {NAME}: it was not made by a culm that writes one, or the file was "
        "removed"
    )
