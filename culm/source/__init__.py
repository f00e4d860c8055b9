"""Where records come from: one file per kind of source, chosen by the path.

A source streams: it holds one record (or one block of a file) in memory, whatever the size.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from culm.config import SettingError
from culm.files import is_local
from culm.source import hub, remote, stdlib
from culm.source.compressed import method_of, suffix_of
from culm.source.kinds import READ, is_read, kind_of, records_of
from culm.source.reading import DocumentSplit, Invalid, Reading
from culm.source.record import (
    LeftOut,
    Record,
    Unreadable,
    as_record,
    at_path,
    fields_of,
    without_path,
)
from culm.source.remote import File, Remote, size_of
from culm.source.source import Source, bytes_in

# A folder with one of these is a run, quickstart, tokenizer or model of ours, not a corpus.
OUR_MARKS = ("run.yaml", "quickstart.json", "tokenizer.json")
SHOWN = 5  # names in a message
AS_LARGE = frozenset(("text", "json", "table"))  # kinds whose text is about as large as the file


@dataclass(frozen=True)
class Files:
    """Records of files, in the order given. skipped: files of the folder of other kinds. links: how
    many in it lead to a folder or to nothing; they are not followed."""

    name: str
    paths: Sequence[File]
    reading: Reading
    skipped: tuple[File, ...] = ()
    links: int = 0

    @property
    def size(self) -> int | None:
        if any(method_of(file) or (kind_of(file) or "text") not in AS_LARGE for file in self.paths):
            return None
        sizes = [size_of(file) for file in self.paths]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def left_out(self) -> Mapping[str, int]:
        found = {}
        if self.skipped:
            other = ", ".join(sorted({suffix_of(file) or file.name for file in self.skipped}))
            phrase = f"files in {self.name} are not read ({other}); what is read is {READ}"
            found[phrase] = len(self.skipped)
        if empty := sum(size_of(file) == 0 for file in self.paths):
            found[f"files in {self.name} are empty"] = empty
        if self.links:
            found[f"links in {self.name} lead to a folder or to nothing and are not followed"] = (
                self.links
            )
        return found

    @property
    def files(self) -> Sequence[File]:
        return self.paths

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for file in self.paths:
            try:
                yield from records_of(file, self.reading)
            except Unreadable as error:
                if self.reading.invalid != "skip":
                    raise
                yield Record({}, str(file), str(error), failure=Unreadable)


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

    @property
    def files(self) -> Sequence[File]:
        return [file for source in self.sources for file in source.files]

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

    @property
    def files(self) -> Sequence[File]:
        return self.source.files

    def __iter__(self) -> Iterator[dict[str, Any]]:
        taken = read = 0
        for record in self.source:
            if isinstance(record, Record) and record.failure is LeftOut:
                yield record
                continue
            if read == self.documents or (self.bytes is not None and taken >= self.bytes):
                return
            read += 1
            yield record
            with suppress(ValueError):  # whoever reads the record refuses it, or leaves it out
                taken += bytes_in(list(self.texts(fields_of(record))))


@dataclass(frozen=True)
class Mapped:
    """A source whose fields have the names that formats ask for.

    fields: the field of the file for each name; a path such as `article.body` leads into objects.
    A field that another one displaces keeps a name of its own, so that it is counted as not used.
    """

    source: Source
    fields: Mapping[str, str]
    missing: Counter[str] = field(default_factory=Counter, compare=False)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def size(self) -> int | None:
        return self.source.size

    @property
    def left_out(self) -> Mapping[str, int]:
        return Counter(self.source.left_out) + self.missing

    @property
    def files(self) -> Sequence[File]:
        return self.source.files

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.missing.clear()  # of an earlier reading
        for number, given in enumerate(self.source, start=1):
            record = as_record(given, f"{self.source.name}: record {number}")
            yield record if record.error is not None else self._mapped(record)

    def _mapped(self, record: Record) -> Record:
        rest = values = fields_of(record)
        found = dict[str, Any]()
        for name, path in self.fields.items():
            try:
                found[name] = at_path(values, path)
                rest = without_path(rest, path)
            except KeyError:
                self.missing[f"records have no {path!r}, which data.fields.{name} names"] += 1
        kept = {f"{name} of the file" if name in found else name: rest[name] for name in rest}
        return type(record)({**kept, **found}, record.place, size=record.size)


def open_source(
    path: str | Path | Sequence[str | Path],
    split: DocumentSplit = "file",
    invalid: Invalid = "error",
    separator: str | None = None,
    setting: str = "data.path",
) -> Source:
    """The source that a path names. setting: what errors call it.

    A file, a folder (every file of a known kind in it, sorted), the URL of either, "stdlib" (the
    text of this Python's standard library), or the id of a Hugging Face dataset:
    owner/name[@revision][:subset[:split]].

    Raises:
        SettingError: it is not one of these, or a folder without files of a known kind.
    """
    if not isinstance(path, str | Path):
        sources = [open_source(one, split, invalid, separator, setting) for one in path]
        return sources[0] if len(sources) == 1 else Chain(sources)
    if not str(path).strip():
        raise SettingError(f"{setting}: it is empty; `.` is the folder here")
    found, name, reading = Path(path).expanduser(), str(path), Reading(split, invalid, separator)
    if remote.is_url(name):
        below = None if kind_of(Remote(name)) else remote.files_below(name, setting)
        if below is None:
            return Files(name, [Remote(name, setting)], reading)
        return _folder(name, _not_ours(below), reading, setting)
    if found.is_file():
        return Files(name, [found], reading)
    if found.is_dir():
        paths = sorted(_paths(found))
        files = [path for path in paths if path.is_file()]
        links = sum(path.is_symlink() and not path.is_file() for path in paths)
        return replace(_folder(name, files, reading, setting), links=links)
    if name == "stdlib":
        return Files("the Python standard library", stdlib.files(), Reading(invalid="replace"))
    if hub.ID.fullmatch(name) and kind_of(found) is None and not is_local(name):
        return hub.Hub(name, setting)
    raise SettingError(f"{setting}: there is no file or folder {name!r}")


def _folder(name: str, paths: Sequence[File], reading: Reading, setting: str) -> Files:
    """The files of a folder that are of a known kind."""
    if {"state.json", "dataset_dict.json"} & {path.name for path in paths} and any(
        suffix_of(path) == ".arrow" for path in paths
    ):
        raise SettingError(
            f"{setting}: {name}: a dataset that save_to_disk of the datasets library wrote, as "
            f".arrow; save one of its splits as Parquet, in Python: datasets.load_from_disk("
            f"{name!r}).to_parquet('data.parquet')"
        )
    files = [path for path in paths if is_read(path)]
    if not files:
        seen = ", ".join(sorted({suffix_of(path) or path.name for path in paths})[:SHOWN])
        raise SettingError(
            f"{setting}: {name}: no file in it is one of {READ}"
            + (f"; it holds {seen}" if seen else "")
        )
    others = set(paths).difference(files)
    return Files(name, files, reading, tuple(path for path in paths if path in others))


def _not_ours(files: Sequence[Remote]) -> list[Remote]:
    """Files of a remote folder, without those in folders of Culm."""
    ours = [file.url.removesuffix(file.name) for file in files if file.name in OUR_MARKS]
    return [file for file in files if not file.url.startswith(tuple(ours))]


def _paths(folder: Path) -> Iterator[Path]:
    """Files and links below a folder, without hidden files and folders of Culm."""
    for root, folders, names in os.walk(folder):
        for name in list(folders):
            path = Path(root, name)
            if name.startswith(".") or any((path / mark).is_file() for mark in OUR_MARKS):
                folders.remove(name)
        yield from (Path(root, name) for name in names if not name.startswith("."))
        yield from (Path(root, name) for name in folders if Path(root, name).is_symlink())
