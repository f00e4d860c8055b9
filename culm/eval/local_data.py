"""Where the files of a suite are: on the hub, or in a folder of the user."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from culm.config import SettingError
from culm.eval.measure.chat import Chat
from culm.eval.measure.scores import Scores
from culm.eval.settings import EvalConfig
from culm.source import kind_of
from culm.source.compressed import method_of
from culm.task.file_task import FileTask
from culm.task.task import Task

SPLITS = ("test", "validation", "val", "dev", "train")  # in the order in which they are taken


def located(settings: EvalConfig, folder: str) -> tuple[EvalConfig, list[str]]:
    """Settings whose tasks read the files of a folder, and the names of those without a file.

    A file is a task's if it has its name, and perhaps that of a split, in any spelling:
    `ARC-Easy.test.jsonl.gz` is that of `arc_easy`. Tasks without a file are left out.

    Raises:
        SettingError: there is no such folder, none of the tasks has a file, or one has several.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise SettingError(f"data: there is no folder {folder!r}")
    files = _named(root)
    missing: list[str] = []
    measures = dict(settings.measures)
    for name, measure in settings.measures.items():
        if isinstance(measure, Scores | Chat):
            given: Sequence[Task] = measure.tasks
            tasks: list[Task] = []
            for task in given:
                if not isinstance(task, FileTask):
                    tasks.append(task)
                elif (found := _files_of(task, files)) is not None:
                    tasks.append(task.model_copy(update={**found, "examples": None}))
                else:
                    missing.append(task.name)
            measures[name] = measure.model_copy(update={"tasks": tuple(tasks)})
    if not any(isinstance(one, Scores | Chat) and one.tasks for one in measures.values()):
        raise SettingError(
            f"data: {folder} has a file for none of {', '.join(missing)}; a file is named as its "
            "task, such as arc_easy.jsonl"
        )
    return settings.model_copy(update={"measures": measures}), missing


def _files_of(task: FileTask, files: Mapping[str, Sequence[Path]]) -> dict[str, str] | None:
    """Each setting of a task that names a file, with that of the folder; None if one is missing."""
    found: dict[str, str] = {}
    for setting, names in task.named_files().items():
        plain = next((name for name in map(_plain, names) if name in files), None)
        if plain is None:
            return None
        first, *others = files[plain]
        if others:
            raise SettingError(
                f"data: {first} and {others[0].name} are both files of {task.name}; keep one"
            )
        found[setting] = str(first)
    return found


def _named(root: Path) -> dict[str, list[Path]]:
    """Files and folders by the plain names of their tasks, those of the best split."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or not (path.is_dir() or kind_of(path)):
            continue
        words = [word for word in re.split(r"[._-]", path.name.lower()) if word]
        split = next((word for word in SPLITS if word in words[1:]), None)
        name = path.name if path.is_dir() else _without_suffixes(path.name)
        plain = _plain(name)
        if split and plain.endswith(split):
            plain = plain.removesuffix(split)
        found.setdefault(plain, []).append((SPLITS.index(split) if split else -1, path))
    best = {plain: min(rank for rank, _ in given) for plain, given in found.items()}
    return {
        plain: [path for rank, path in given if rank == best[plain]]
        for plain, given in found.items()
    }


def _without_suffixes(name: str) -> str:
    path = Path(name)
    return (path.with_suffix("") if method_of(path) else path).stem


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
