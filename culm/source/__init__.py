"""Where records come from: one file per kind of source, chosen by the path.

A source streams: it holds one record (or one block of a file) in memory, whatever the size.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from culm.config import SettingError
from culm.files import is_local
from culm.source import hub, jsonl, parquet, stdlib, text
from culm.source.record import fields_of
from culm.source.source import Source, bytes_in

DocumentSplit = Literal["file", "paragraphs", "lines"]
Invalid = Literal["error", "replace", "skip"]

# A folder with one of these is a run, quickstart, tokenizer or model of ours, not a corpus.
OUR_MARKS = ("run.yaml", "quickstart.json", "tokenizer.json")
KINDS = {
    **dict.fromkeys((".txt", ".md", ".py", ".rst"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    ".parquet": "parquet",
}
TABLES = frozenset((".csv", ".tsv"))


@dataclass(frozen=True)
class Files:
    """Records of files, in the order given.

    split, separator: what counts as a document in a text file. invalid: what to do with bytes that
    are not UTF-8, and with lines that are not JSON. skipped: files of the folder of other kinds.
    """

    name: str
    paths: Sequence[Path]
    split: DocumentSplit = "file"
    invalid: Invalid = "error"
    separator: str | None = None
    skipped: tuple[Path, ...] = ()

    @property
    def size(self) -> int | None:
        if any(text.is_gzip(path) or kind_of(path) == "parquet" for path in self.paths):
            return None
        return sum(path.stat().st_size for path in self.paths)

    @property
    def left_out(self) -> Mapping[str, int]:
        found = {}
        if self.skipped:
            other = ", ".join(sorted({path.suffix or path.name for path in self.skipped}))
            phrase = f"files in {self.name} are not read ({other}); what is read is "
            found[phrase + ", ".join(KINDS)] = len(self.skipped)
        if empty := sum(path.stat().st_size == 0 for path in self.paths):
            found[f"files in {self.name} are empty"] = empty
        return found

    def __iter__(self) -> Iterator[dict[str, Any]]:
        readers: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
            "text": lambda path: text.records(path, self.split, self.invalid, self.separator),
            "json": lambda path: jsonl.records(path, self.invalid),
            "parquet": parquet.records,
        }
        for path in self.paths:
            yield from readers[kind_of(path) or kind_in(path)](path)


@dataclass(frozen=True)
class Chain:
    """Several sources, one after the other."""

    sources: Sequence[Source]

    @property
    def name(self) -> str:
        return ", ".join(source.name for source in self.sources)

    @property
    def size(self) -> int | None:
        sizes = [source.size for source in self.sources]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def left_out(self) -> Mapping[str, int]:
        return sum((Counter(source.left_out) for source in self.sources), Counter[str]())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for source in self.sources:
            yield from source


@dataclass(frozen=True)
class Limited:
    """The first `documents` records of a source, or fewer: none after `bytes` of text were read.

    texts: gives the text of a record.
    """

    source: Source
    texts: Callable[[dict[str, Any]], Iterator[str]]
    documents: int | None
    bytes: int | None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def size(self) -> int | None:
        known = [size for size in (self.source.size, self.bytes) if size is not None]
        return min(known, default=None)

    @property
    def left_out(self) -> Mapping[str, int]:
        return self.source.left_out

    def __iter__(self) -> Iterator[dict[str, Any]]:
        taken = 0
        for record in islice(self.source, self.documents):
            if self.bytes is not None and taken >= self.bytes:
                return
            yield record
            with suppress(ValueError):  # whoever reads the record refuses it, or leaves it out
                taken += bytes_in(list(self.texts(fields_of(record))))


def open_source(
    path: str | Path | Sequence[str | Path],
    split: DocumentSplit = "file",
    invalid: Invalid = "error",
    separator: str | None = None,
    setting: str = "data.path",
) -> Source:
    """The source that a path names. setting: what errors call it.

    A file, a folder (every file of a known kind in it, sorted), "stdlib" (the text of this
    Python's standard library), or the id of a Hugging Face dataset:
    owner/name[@revision][:subset[:split]].

    Raises:
        SettingError: it is none of these, or a folder without files of a known kind.
    """
    if not isinstance(path, str | Path):
        sources = [open_source(one, split, invalid, separator, setting) for one in path]
        return sources[0] if len(sources) == 1 else Chain(sources)
    if not str(path).strip():
        raise SettingError(f"{setting}: it is empty; `.` is the folder here")
    found, name = Path(path).expanduser(), str(path)
    if found.is_file():
        _refuse_table(found, setting)
        return Files(name, [found], split, invalid, separator)
    if found.is_dir():
        paths = sorted(_files(found))
        files = [path for path in paths if kind_of(path)]
        if not files:
            raise SettingError(f"{setting}: {name}: no file in it is one of {', '.join(KINDS)}")
        skipped = tuple(path for path in paths if not kind_of(path))
        return Files(name, files, split, invalid, separator, skipped)
    if name == "stdlib":
        return Files("the Python standard library", stdlib.files(), "file", "replace")
    if hub.ID.fullmatch(name) and kind_of(found) is None and not is_local(name):
        return hub.Hub(name, setting)
    raise SettingError(f"{setting}: there is no file or folder {name!r}")


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder, without hidden files and folders of Culm."""
    for root, folders, names in os.walk(folder):
        for name in list(folders):
            path = Path(root, name)
            if name.startswith(".") or any((path / mark).is_file() for mark in OUR_MARKS):
                folders.remove(name)
        paths = (Path(root, name) for name in names if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _refuse_table(path: Path, setting: str) -> None:
    """Refuse a table whose columns nobody would read; in a folder such files are counted."""
    if TABLES & {suffix.lower() for suffix in path.suffixes}:
        raise SettingError(
            f"{setting}: {path} is a table, whose columns cannot be read; save it as .jsonl or "
            ".parquet, or as .txt to learn its lines as they are"
        )


def kind_in(path: Path) -> str:
    """How a file whose name does not say it is read: by its first bytes."""
    try:
        with text.opened(path) as file:
            head = file.read(text.BLOCK)
    except text.UNREADABLE as error:
        raise text.unreadable(path, error) from None
    if head.startswith(parquet.MAGIC):
        return "parquet"
    return "json" if jsonl.is_json(head) else "text"


def kind_of(path: Path) -> str | None:
    """How a file is read, by its name; .gz does not matter."""
    suffixes = path.suffixes[:-1] if text.is_gzip(path) else path.suffixes
    return KINDS.get(suffixes[-1].lower()) if suffixes else None
