"""A run folder belongs to one run, whose data and settings do not change under its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from culm.atomic import atomic, discard
from culm.compose import read_yaml
from culm.config import Config, MayChange, SettingError, parse
from culm.data.manifest import Manifest, is_corpus
from culm.data.origin import Origin, change_in, changes_since
from culm.data.source_file import SourceFile
from culm.files import read_json, write_json
from culm.log import say
from culm.source.source import Source
from culm.tokenizer.folder import FILES
from culm.tokenizer.tokenizer import Tokenizer
from culm.train.checkpoint.folder import settings_in, steps_in
from culm.train.guard import LOCK, STATUS

SETTINGS, MANIFEST = "run.yaml", "manifest.json"
ORIGIN = "origin.json"  # next to a tokenizer that a run trained: the files it was trained on
LONGEST = 200  # characters of settings in a message
WRITTEN = (
    "metrics.jsonl",
    "eval.jsonl",
    "difficulty.npz",
    "results.json",
    "report.md",
    "checkpoints",
    "adapter",
    "model",
)

Settings = TypeVar("Settings", bound=Config)

# What the tokenizer and the prepared corpus in the folder depend on.
PREPARED = ("seed", "start", "tokenizer", "model.vocabulary", "data")


def is_fixed(kind: type[BaseModel], name: str) -> bool:
    """Whether the setting of a dotted name may not change once something was trained."""
    first, _, rest = name.partition(".")
    field = kind.model_fields[first]
    mark = next((one for one in field.metadata if isinstance(one, MayChange)), None)
    if mark is not None:
        return rest.partition(".")[0] in mark.but
    inner: Any = field.annotation
    sectioned = isinstance(inner, type) and issubclass(inner, BaseModel)
    return is_fixed(inner, rest) if sectioned and rest else True


def read_settings(folder: Path, kind: type[Settings]) -> Settings | None:
    """The settings that the folder was created with; None for a new one.

    Where `run.yaml` was lost, those in the newest checkpoint.

    Raises:
        SettingError: its `run.yaml` is not a run's, or it is not a folder.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"folder: {folder} is a file; choose another name")
    path = folder / SETTINGS
    written = path.exists() and path.stat().st_size > 0
    settings = read_yaml(path) if written else settings_in(folder)
    if settings and not {"data", "train", "seed"} <= set(settings):
        raise SettingError(f"{path}: not the settings of a run; give this run another folder=...")
    try:
        return parse(kind, settings) if settings else None
    except SettingError as error:
        raise SettingError(f"{path}: {error}; give this run another folder=...") from None


def prepared_by(folder: Path, config: Config, source: Source | None) -> bool:
    """Whether the tokenizer and the corpus in the folder were made by these settings, from files
    that are as they were.

    source: of the run's corpus; None where its files are gone, or are not read.

    Raises:
        SettingError: naming the setting or the file in which the folder's checkpoints differ.
    """
    old = read_settings(folder, type(config))
    if old is None:
        return False
    all_changed = _changed(_plain(old), _plain(config))
    kind = type(config)
    changed = {name: values for name, values in all_changed.items() if is_fixed(kind, name)}
    if changed and steps_in(folder):
        name, (was, now) = next(iter(changed.items()))
        values = f"{now!r}, but {folder} was trained with {was!r}"
        if len(values) > LONGEST:
            values = f"not what {folder} was trained with"
        raise SettingError(f"{name}: {values}; give a new run another folder=...")
    change = source_change(folder, source)
    if change is not None and steps_in(folder):
        raise SettingError(
            f"data.path: {change}, and {folder} was trained on what was there then; put it back, "
            "or give a new run another folder=..."
        )
    return change is None and not any(_within(name, PREPARED) for name in changed)


def source_change(folder: Path, source: Source | None) -> str | None:
    """How the files of a corpus differ from those that the folder's tokenizer and corpus were made
    from, as half a sentence.
    """
    origins, read = [_tokenizer_origin(folder)], dict[str, SourceFile]()
    if is_corpus(folder / "data"):
        manifest = Manifest.read(folder / "data")
        origins.append(manifest.origin)
        read = {name: file for stage in manifest.clean for name, file in stage.files.items()}
    found = (change_in(origin, source) for origin in origins if origin and source is not None)
    return next((one for one in (*found, *changes_since(read)) if one is not None), None)


def save_tokenizer(folder: Path, tokenizer: Tokenizer, origin: Origin) -> None:
    """Write the tokenizer that a run trained, and which files it was trained on."""
    with atomic(folder / "tokenizer") as fresh:
        tokenizer.save(fresh)
        write_json(fresh / ORIGIN, {name: file.model_dump() for name, file in origin.items()})


def _tokenizer_origin(folder: Path) -> Origin:
    path = folder / "tokenizer" / ORIGIN
    if not path.is_file():
        return {}
    values = read_json(path)
    return {name: parse(SourceFile, facts, str(path)) for name, facts in values.items()}


def write_settings(folder: Path, config: Config, source: Source | None = None) -> None:
    """Write the complete settings of a run, as a run file, into its folder.

    Before the first checkpoint, a tokenizer or corpus that other settings or other files made is
    removed. Files that Culm did not make are left alone.

    Raises:
        SettingError: as `check`.
    """
    made = check(folder, config, source)
    change = source_change(folder, source)
    for path in made:
        discard(path)
    if made and change is not None:
        say(f"{folder}: {change}; tokenizer and corpus are made again.")
    with atomic(folder / SETTINGS) as fresh:
        fresh.write_text(yaml.safe_dump(_plain(config), sort_keys=False), encoding="utf-8")


def discard_settings(folder: Path) -> None:
    """Remove the folder of a run that made nothing yet; one with anything else in it stays."""
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if inside and inside <= {SETTINGS, LOCK, STATUS}:
        discard(folder)


def check(folder: Path, config: Config, source: Source | None = None) -> list[Path]:
    """What other settings or other files made in the folder of a run; it is removed before the run
    starts.

    Raises:
        SettingError: naming the setting in which the folder's checkpoints differ, or the files of
            somebody else that are where the run would put its own.
    """
    settings = _plain(config)
    steps, done = settings["train"]["steps"], max(steps_in(folder), default=0)
    if done > steps:
        raise SettingError(
            f"train.steps: {steps}, but {folder} was trained for {done}; ask for as many or more, "
            "or give a new run another folder=..."
        )
    if (folder / SETTINGS).exists():
        _refuse_other_kinds(folder)
    if prepared_by(folder, config, source):
        return []
    old = read_settings(folder, type(config))
    others = [name for name in WRITTEN if old is None and (folder / name).exists()]
    if others:
        raise SettingError(
            f"{folder / others[0]}: no run of Culm wrote this, and this one would replace it; "
            "give it another folder=..."
        )
    made = list(_made(folder, _plain(old) if old else {}, settings))
    return made if old else []


def _refuse_other_kinds(folder: Path) -> None:
    """Refuse a folder where the run writes a file, or the other way round."""
    for name in WRITTEN:
        path, is_file = folder / name, "." in name
        if path.exists() and path.is_file() != is_file:
            raise SettingError(
                f"{path}: the run needs this name for a {'file' if is_file else 'folder'}; move it "
                "away, or give the run another folder=..."
            )


def _plain(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _made(folder: Path, *settings: Mapping[str, Any]) -> Iterator[Path]:
    """The tokenizer and the corpus that a run made in its folder; not a corpus that was prepared
    elsewhere and is only read.

    Raises:
        SettingError: what is there was not made by Culm.
    """
    given = [values.get("data", {}).get("prepared") for values in settings]
    read = {Path(place).resolve() for place in given if place is not None}
    for name, is_ours in (("tokenizer", _is_tokenizer), ("data", is_corpus)):
        path = folder / name
        if not path.exists() or path.resolve() in read:
            continue
        if not is_ours(path):
            raise SettingError(
                f"{path}: Culm did not make this, and the run needs its name; move it away, or "
                "give the run another folder=..."
            )
        yield path


def _is_tokenizer(path: Path) -> bool:
    """Whether a folder holds what `Tokenizer.save` writes and nothing else."""
    try:
        settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    names = {inner.name for inner in path.iterdir()}
    return "end_of_text_id" in settings and names <= FILES | {ORIGIN}


def _within(name: str, sections: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{section}.") for section in sections)


def _changed(old: Any, new: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted names with the old and the new value, in the order of the settings."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return {} if old == new else {name: (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*new, *old]):
        path = f"{name}.{key}" if name else str(key)
        found |= _changed(old.get(key), new.get(key), path)
    return found
