"""A run folder belongs to one run, whose data and settings do not change under its checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from culm.compose import read_yaml
from culm.config import Config, SettingError, parse
from culm.data.manifest import NAME, Manifest
from culm.files import atomic
from culm.tokenizer.folder import FILES
from culm.train.checkpoint import steps_in

SETTINGS = "run.yaml"
LONGEST = 200  # characters of settings in a message
WRITTEN = (
    "metrics.jsonl",
    "eval.jsonl",
    "results.json",
    "report.md",
    "checkpoints",
    "adapter",
    "model",
)

Settings = TypeVar("Settings", bound=Config)

# What the tokenizer and the prepared corpus in the folder depend on.
PREPARED = ("seed", "start", "tokenizer", "model.vocabulary", "data")


@dataclass(frozen=True)
class MayChange:
    """Marks a setting that may change when a run resumes; every other one is fixed, since what is
    in its checkpoints depends on it. but: parts of it that are fixed all the same.
    """

    but: tuple[str, ...] = ()


MAY_CHANGE = MayChange()


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

    Raises:
        SettingError: its `run.yaml` is not a run's, or it is not a folder.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"folder: {folder} is a file; choose another name")
    path = folder / SETTINGS
    settings = read_yaml(path) if path.exists() else {}
    if settings and not {"data", "train", "seed"} <= set(settings):
        raise SettingError(f"{path}: not the settings of a run; give this run another folder=...")
    try:
        return parse(kind, settings) if settings else None
    except SettingError as error:
        raise SettingError(f"{path}: {error}; give this run another folder=...") from None


def prepared_by(folder: Path, config: Config) -> bool:
    """Whether the tokenizer and the corpus in the folder were made by these settings.

    Raises:
        SettingError: naming the setting in which the folder's checkpoints differ.
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
    return not any(_within(name, PREPARED) for name in changed)


def write_settings(folder: Path, config: Config) -> None:
    """Write the complete settings of a run, as a run file, into its folder.

    Before the first checkpoint, a tokenizer or corpus that other settings made is removed.
    Files that Culm did not make are left alone.

    Raises:
        SettingError: as `check`.
    """
    for path in check(folder, config):
        shutil.rmtree(path)
    with atomic(folder / SETTINGS) as fresh:
        fresh.write_text(yaml.safe_dump(_plain(config), sort_keys=False), encoding="utf-8")


def check(folder: Path, config: Config) -> list[Path]:
    """What other settings made in the folder of a run; it is removed before the run starts.

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
    if prepared_by(folder, config):
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
    for name, is_ours in (("tokenizer", _is_tokenizer), ("data", _is_corpus)):
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
    return "end_of_text_id" in settings and {inner.name for inner in path.iterdir()} <= FILES


def _is_corpus(path: Path) -> bool:
    """Whether a folder holds what `prepare` writes and nothing else."""
    try:
        splits = Manifest.read(path).splits
    except SettingError:
        return False
    return {inner.name for inner in path.iterdir()} <= {NAME, "tokenizer", *splits}


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
