"""Where records come from: one file a kind of source, told apart by what a path is.

A source streams: it holds one record (or one block of a file) at a time, whatever the size.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from culm.config import SettingError
from culm.data.source import jsonl, parquet, stdlib, text
from culm.data.source.hub import Hub

T = TypeVar("T")
Record = dict[str, Any]
Split = Literal["file", "paragraphs", "lines"]
Invalid = Literal["error", "replace", "skip"]

# Files by which runs, quickstarts, tokenizers and models are known: no text to learn from.
OUR_MARKS = ("run.yaml", "quickstart.json", "tokenizer.json")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+){0,2}")
KINDS = {
    **dict.fromkeys((".txt", ".md", ".py", ".rst"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    ".parquet": "parquet",
}


class Source(Protocol):
    """Iterating gives records, anew each time.

    name: for messages. size: how many bytes there are to read, roughly; None if unknown.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    def __iter__(self) -> Iterator[Record]: ...


@dataclass(frozen=True)
class Files:
    """Records of files, in the order given.

    split: what of a text file is a document. invalid: what happens to bytes that are not UTF-8.
    """

    name: str
    paths: Sequence[Path]
    split: Split = "file"
    invalid: Invalid = "error"

    @property
    def size(self) -> int | None:
        if any(path.suffix in (".gz", ".parquet") for path in self.paths):
            return None
        return sum(path.stat().st_size for path in self.paths)

    def __iter__(self) -> Iterator[Record]:
        readers: dict[str, Callable[[Path], Iterator[Record]]] = {
            "text": lambda path: text.records(path, self.split, self.invalid),
            "json": lambda path: jsonl.records(path, self.invalid),
            "parquet": parquet.records,
        }
        for path in self.paths:
            yield from readers[kind_of(path) or "text"](path)


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

    def __iter__(self) -> Iterator[Record]:
        for source in self.sources:
            yield from source


@dataclass(frozen=True)
class Limited:
    """At most `documents` records of a source, and no more once `bytes` of text were read.

    texts: gives the text of a record.
    """

    source: Source
    texts: Callable[[Record], Iterator[str]]
    documents: int | None
    bytes: int | None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def size(self) -> int | None:
        known = [size for size in (self.source.size, self.bytes) if size is not None]
        return min(known, default=None)

    def __iter__(self) -> Iterator[Record]:
        taken = 0
        for record in islice(self.source, self.documents):
            if self.bytes is not None and taken >= self.bytes:
                return
            yield record
            taken += bytes_in(list(self.texts(record)))


def bytes_in(value: Any) -> int:
    """Of all text in a record or a part of it, as UTF-8."""
    match value:
        case str():
            return len(value.encode("utf-8", "surrogatepass"))
        case dict():
            return sum(map(bytes_in, value.values()))
        case list():
            return sum(map(bytes_in, value))
    return 0


def found_in(source: Source, read: Callable[[Record], Iterator[T]]) -> Iterator[tuple[int, T]]:
    """What `read` finds in each record, with the number of the record.

    Raises:
        SettingError: a record of another shape than `read` wants, by its number.
    """
    for number, record in enumerate(source, start=1):
        try:
            yield from ((number, found) for found in read(record))
        except ValueError as error:
            raise bad_record(source, number, error) from None


def bad_record(source: Source, number: int, error: ValueError) -> SettingError:
    """What to say of a record that cannot be read."""
    return (
        error
        if isinstance(error, SettingError)
        else SettingError(f"{source.name}: record {number}: {error}")
    )


def open_source(
    path: str | Path | Sequence[str | Path], split: Split = "file", invalid: Invalid = "error"
) -> Source:
    """The source that a path means.

    A file, a folder (every file of a known kind in it, sorted), "stdlib" (the text of this
    Python's standard library), or the id of a Hugging Face dataset: owner/name[:subset[:split]].

    Raises:
        SettingError: it is none of these, or a folder without such files.
    """
    if not isinstance(path, str | Path):
        sources = [open_source(one, split, invalid) for one in path]
        return sources[0] if len(sources) == 1 else Chain(sources)
    if not str(path).strip():
        raise SettingError("data.path: it is empty; `.` is the folder here")
    found, name = Path(path).expanduser(), str(path)
    if found.is_file():
        return Files(name, [found], split, invalid)
    if found.is_dir():
        files = sorted(_files(found))
        if not files:
            raise SettingError(f"data.path: {name}: no file in it is one of {', '.join(KINDS)}")
        return Files(name, files, split, invalid)
    if name == "stdlib":
        return Files("the Python standard library", stdlib.files(), "file", "replace")
    if HUB_ID.fullmatch(name) and kind_of(found) is None:
        return Hub(name)
    raise SettingError(f"data.path: there is no file or folder {name!r}")


def _files(folder: Path) -> Iterator[Path]:
    """Those of a known kind below a folder, hidden ones and what Culm wrote there left out."""
    for root, folders, names in os.walk(folder):
        for name in list(folders):
            path = Path(root, name)
            if name.startswith(".") or any((path / mark).is_file() for mark in OUR_MARKS):
                folders.remove(name)
        paths = (Path(root, name) for name in names if not name.startswith("."))
        yield from (path for path in paths if kind_of(path) and path.is_file())


def kind_of(path: Path) -> str | None:
    """How a file is read, by its name; compressed ones (.gz) like the others."""
    suffixes = path.suffixes[:-1] if path.suffix == ".gz" else path.suffixes
    return KINDS.get(suffixes[-1].lower()) if suffixes else None
