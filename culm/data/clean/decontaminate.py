"""Documents that hold a part of a question which the model will be asked in an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, PositiveInt, model_validator

from culm.config import listed, one_of
from culm.data.clean.stage import Filter, Stage, Step
from culm.data.overlap import WORDS, Overlap, parts_of, text_of
from culm.source import open_source
from culm.source.record import fields_of
from culm.source.source import LeftOutOnly, found_in, local_files, strings_in
from culm.task import FromFiles
from culm.task.file_task import FileTask


class Decontaminate(Stage):
    """Drops what has this many words in a row in common with an item of an evaluation set.

    path: files, folders or datasets of the hub with the sets; an item is all text of a record.
    tasks: sets as an evaluation reads them; an item is a test question with its right answer.
    words: in a row, without case and punctuation (13 in GPT-3's report, arXiv 2005.14165). Items
        with fewer cannot be found; they are counted.
    """

    kind: Literal["decontaminate"] = "decontaminate"
    path: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    tasks: tuple[one_of(FromFiles), ...] = ()  # type: ignore[valid-type]
    words: PositiveInt = WORDS

    @model_validator(mode="after")
    def _against_something(self) -> Decontaminate:
        if not self.path and not self.tasks:
            raise ValueError("path: give evaluation sets here or in tasks")
        return self

    @cached_property
    def _items(self) -> dict[str, list[set[str]]]:
        """The parts of each item, by its set."""
        found = {path: [parts_of(i, self.words) for i in _records(path)] for path in self.path}
        for task in self._file_tasks:
            texts = map(text_of, task.asked("test"))
            found[task.name] = [parts_of(text, self.words) for text in texts]
        return found

    @property
    def _file_tasks(self) -> Sequence[FileTask]:
        return [task for task in self.tasks if isinstance(task, FileTask)]

    @property
    def files(self) -> Sequence[Path]:
        read = [*self.path, *(path for task in self._file_tasks for path in task.paths)]
        sources = (open_source(path, setting="data.clean.decontaminate.path") for path in read)
        return [file for source in sources for file in local_files(source)]

    def notes(self) -> Mapping[str, int]:
        short = {name: sum(not parts for parts in items) for name, items in self._items.items()}
        return {
            f"items of {name} have fewer than {self.words} words and cannot be searched for": n
            for name, n in short.items()
            if n
        }

    def build(self) -> Step:
        return _Searched(self._items, self.words)


class _Searched(Filter):
    def __init__(self, items: dict[str, list[set[str]]], words: int) -> None:
        self._names = {
            part: name
            for name, parts in reversed(items.items())  # of a part of several sets the first
            for item in parts
            for part in item
        }
        self._overlap = Overlap(self._names, words)

    def reason(self, text: str) -> str | None:
        found = self._overlap.found_in(text)
        return f"overlap with {self._names[min(found)]}" if found else None


def _records(path: str) -> Iterator[str]:
    """All text of each record of an evaluation set."""
    source = open_source(path, setting="data.clean.decontaminate.path")
    skipped = LeftOutOnly()
    for _, texts in found_in(source, lambda record: strings_in(fields_of(record)), skipped):
        yield " ".join(texts)
    skipped.say()
