"""A run folder belongs to one run: what it has learned from does not change under it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from culm.config import SettingError, read_yaml
from culm.files import atomic
from culm.train.checkpoint import steps_in

SETTINGS = "run.yaml"

# What a checkpoint depends on. Everything else (steps, rates, schedule, precision, layout,
# evaluation) may change when a run goes on.
FIXED = (
    "seed", "start", "tokenizer", "model", "data",
    "train.rows", "train.context", "train.objective", "train.adapter", "train.optimizer.kind",
)  # fmt: skip
# What the tokenizer and the prepared corpus in the folder depend on.
PREPARED = ("seed", "start", "tokenizer", "model.vocabulary", "data")


def before(folder: Path) -> dict[str, Any]:
    """The settings that the folder was begun with, complete; empty for a new one."""
    return read_yaml(folder / SETTINGS) if (folder / SETTINGS).exists() else {}


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the complete settings of a run, as a run file, into its folder.

    As long as nothing was trained, a tokenizer or corpus that other settings had made is removed.

    Raises:
        SettingError: naming the setting in which the folder's checkpoints differ.
    """
    old, new = before(folder), dict(settings)
    changed = _changed(old, new) if old else {}
    fixed = [name for name in changed if _within(name, FIXED)]
    if fixed and steps_in(folder):
        was, now = changed[fixed[0]]
        raise SettingError(
            f"{fixed[0]}: {now!r}, but {folder} was trained with {was!r}; "
            "give a new run another folder=..."
        )
    if any(_within(name, PREPARED) for name in fixed):
        for made in ("tokenizer", "data"):
            shutil.rmtree(folder / made, ignore_errors=True)
    with atomic(folder / SETTINGS) as fresh:
        fresh.write_text(yaml.safe_dump(new, sort_keys=False), encoding="utf-8")


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
