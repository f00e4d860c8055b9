"""`culm lineage`: what a model was made from, and whether that is still there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from culm.convert.load import find_model
from culm.data.manifest import NAME
from culm.files import sha256
from culm.lineage import (
    Content,
    CorpusRecord,
    Lineage,
    changes_in,
    read_lineage,
    unreproducible,
)
from culm.run.reads import SHOWN, digest_of
from culm.train.checkpoint.folder import steps_in

WIDTH = 1000  # characters: a tree is cut at the width, and a terminal wraps long lines itself


def show_lineage(model: str) -> None:
    """Print the tree from a model down to raw files.

    Raises:
        SettingError: there is no record of it.
    """
    place = find_model(model)
    known = read_lineage(place) if place.exists() else None
    if known is None:
        raise unreproducible(model)
    tree = Tree(f"[bold]{escape(model)}[/]")
    _grow(tree, known, str(place), place)
    Console(highlight=False, width=WIDTH).print(tree)


def _grow(tree: Tree, made: Lineage, label: str, place: Path) -> None:
    """place: where the model is, or was."""
    weights = next((d for name, d in made.files.items() if "tokenizer" not in name), "")
    line = f"culm {' '.join(made.command)}: {label}, SHA-256 {weights[:SHOWN]}"
    branch = tree.add(_marked(line, changes_in(place, made.files)))
    directory = Path(made.directory)
    if made.settings:
        folder = directory / str(made.settings["folder"])
        steps = ", ".join(f"step {step:,}" for step in steps_in(folder)) or "none are there"
        branch.add(escape(f"checkpoints in {made.settings['folder']}: {steps}"))
    for corpus in made.corpora:
        _grow_corpus(branch, corpus, directory)
    for file in made.streams:
        branch.add(_marked(f"stream of {file.path}", _gone(directory / file.path)))
    for setting, model in made.models.items():
        if isinstance(model, Lineage):
            path = _path_of(model, made, setting)
            _grow(branch.add(escape(setting)), model, path, find_model(directory / path))
        else:
            branch.add(_marked(f"{setting}: {model.path}", _changed_model(model, directory)))


def _path_of(model: Lineage, made: Lineage, setting: str) -> str:
    """Where a model was that another one was made from."""
    if setting == "source":
        return made.command[1]
    value: object = made.settings
    for name in setting.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, dict):
        value = value.get("path") or value.get("hf")
    return str(value or model.settings.get("folder", ""))


def _grow_corpus(tree: Tree, corpus: CorpusRecord, directory: Path) -> None:
    manifest = directory / corpus.path / NAME
    changes = _gone(manifest) or (
        ["it was prepared again"] if sha256(manifest) != corpus.manifest else []
    )
    branch = tree.add(_marked(f"tokens in {corpus.path}", changes))
    if corpus.cleaning:
        branch = branch.add(escape(f"cleaned by {', '.join(corpus.cleaning)}"))
    for file in corpus.origin:
        path = directory / file.path
        changed = _gone(path) or (["it was changed"] if sha256(path) != file.sha256 else [])
        branch.add(_marked(f"{file.path}, SHA-256 {(file.sha256 or '')[:SHOWN]}", changed))


def _changed_model(model: Content, directory: Path) -> list[str]:
    path = find_model(directory / model.path)
    if not path.exists():  # a hub id, which is not asked
        return [] if "/" in model.path and not Path(model.path).is_absolute() else ["it is gone"]
    changed = model.sha256 is not None and digest_of(str(path)) != model.sha256
    return ["it was changed"] if changed else []


def _gone(path: Path) -> list[str]:
    return [] if path.exists() else ["it is gone"]


def _marked(line: str, changes: Iterable[str]) -> str:
    said = "; ".join(changes)
    return f"{escape(line)}  [red]{escape(said)}[/]" if said else escape(line)
