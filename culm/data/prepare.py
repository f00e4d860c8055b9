"""Records to token shards, in one pass over a corpus of any size.

    source -> units -> divided: duplicates dropped, a split for each -> encoded in batches -> shards

Memory holds one block of the source and one batch of documents. Only the
digests that find exact duplicates grow with the corpus: about 100 bytes of memory per document, or
1 GB for ten million.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from culm.config import SettingError
from culm.data.example import Content, Example, RecordFormat
from culm.data.format.document import DocumentFormat
from culm.data.manifest import CONTENTS, Manifest, is_corpus
from culm.data.origin import origin_of
from culm.data.shards import Document, SplitWriter
from culm.data.source import Record, Source, bad_record, bytes_in, found_in
from culm.files import atomic, refuse_existing
from culm.log import Bar, progress
from culm.tokenizer.tokenizer import Tokenizer

BATCH = 1 << 20  # bytes of text that are encoded together


@dataclass(frozen=True, slots=True)
class Unit:
    """Contents that belong together: one, or a pair. record: number of the record; size: in bytes;
    numbers: of the record, in the columns of the format.
    """

    contents: list[Content]
    record: int
    size: int
    numbers: tuple[float, ...] = ()


CUT = (
    "data.format={kind: document, max_characters: 10000} to cut it into many, "
    "data.split=paragraphs if they are its documents, or "
)


def prepare(
    source: Source,
    format: RecordFormat,
    tokenizer: Tokenizer,
    folder: str | Path,
    held_out: float = 0.02,
    seed: int = 0,
    overwrite: bool = False,
) -> Manifest:
    """Write the token shards of a corpus to a new folder.

    held_out: share of the documents in the split "held_out", chosen by a hash of the document and
    the seed; at least one. With 0 there is no such split. All other documents are in the split
    "train". The text decides, not the tokens: the splits are the same for every tokenizer.
    The folder appears when it is complete, or not at all. overwrite: replace an older corpus there.

    Raises:
        SettingError: there is nothing to read, a record has an unknown shape, the corpus cannot be
            divided, the disk is full, or the folder exists.
        InUseError: another process is writing the folder.
    """
    with _new_folder(Path(folder), overwrite) as work:
        origin = origin_of(source)
        lengths = np.array([len(tokenizer.bytes_of(id)) for id in range(tokenizer.vocabulary)])
        lengths[tokenizer.end_of_text] = 0  # also where it is a byte of its own
        names = ("train", "held_out") if held_out else ("train",)
        writers = {name: SplitWriter(work / name, lengths, format.columns) for name in names}
        divider = _Splitter(held_out, seed, CUT if isinstance(format, DocumentFormat) else "")
        try:
            with progress("prepare", source.size, "bytes") as bar:
                divided = divider.divide(_units(source, format, bar), source.name)
                for name, documents in _encoded(divided, source, format, tokenizer):
                    writers[name].append(documents)
        finally:
            for writer in writers.values():
                writer.close()
        splits = {name: writer.facts() for name, writer in writers.items()}
        manifest = Manifest(
            source=source.name, origin=origin, held_out=held_out, seed=seed,
            dropped=divider.dropped, format=str(format.model_dump()["kind"]), gives=format.gives,
            group=format.group, columns=format.columns, tokenizer=tokenizer.fingerprint,
            vocabulary=tokenizer.vocabulary, end_of_text=tokenizer.end_of_text, splits=splits,
        )  # fmt: skip
        tokenizer.save(work / "tokenizer")
        manifest.write(work)
    return manifest


def _units(source: Source, format: RecordFormat, bar: Bar) -> Iterator[Unit]:
    done = 0
    contents: list[Content] = []

    def read(record: Record) -> Iterator[tuple[Content, tuple[float, ...]]]:
        numbers = format.numbers(record)
        return ((content, numbers) for content in format.contents(record))

    for record, (content, numbers) in found_in(source, read):
        contents.append(content)
        if len(contents) == format.group:
            yield (unit := Unit(contents, record, bytes_in(contents), numbers))
            contents = []
            bar.advance(unit.size)
            done += unit.size
    bar.advance(max(0, (source.size or 0) - done))  # what quotes and braces of the files took


class _Splitter:
    """A split for each unit that was not seen before.

    A key in [0, 1) comes from the content alone, so that a document stays in its split whatever
    stands around it. The unit with the lowest key waits until the end: it is the one to hold out
    where no key is below the share, and the one to train on where all are.
    """

    def __init__(self, held_out: float, seed: int, cut: str) -> None:
        """cut: what to say of how one document becomes several."""
        self._held_out, self._seed, self._cut = held_out, seed.to_bytes(8, "little"), cut
        self._seen: set[bytes] = set()
        self.dropped = 0

    def divide(self, units: Iterable[Unit], source: str) -> Iterator[tuple[str, Unit]]:
        waiting: tuple[float, Unit] | None = None
        used = set()  # splits that have a document
        for key, unit in self._keyed(units):
            if waiting is None:
                waiting = key, unit
                continue
            if key < waiting[0]:
                ready, waiting = waiting, (key, unit)
            else:
                ready = key, unit
            split = "held_out" if ready[0] < self._held_out else "train"
            used.add(split)
            yield split, ready[1]
        if waiting is None:
            raise SettingError(f"{source}: nothing to read: it contains no document")
        if self._held_out and not used:
            dropped = f" ({self.dropped} duplicates are dropped)" if self.dropped else ""
            raise SettingError(
                f"{source}: one document{dropped} cannot be divided into training and held-out "
                f"text; give more, or in a run file {self._cut}data.held_out=0 to hold out nothing"
            )
        yield "held_out" if self._held_out and "train" in used else "train", waiting[1]

    def _keyed(self, units: Iterable[Unit]) -> Iterator[tuple[float, Unit]]:
        """Each new unit with its key; duplicates are counted."""
        for unit in units:
            digest = _digest(unit)
            if digest in self._seen:
                self.dropped += 1
                continue
            self._seen.add(digest)
            keyed = hashlib.blake2b(digest, key=self._seed, digest_size=8).digest()
            yield int.from_bytes(keyed, "little") / 2**64, unit


def _digest(unit: Unit) -> bytes:
    written = json.dumps(unit.contents, sort_keys=True, default=str)
    return hashlib.blake2b(written.encode(), digest_size=16).digest()


def _encoded(
    divided: Iterable[tuple[str, Unit]], source: Source, format: RecordFormat, tokenizer: Tokenizer
) -> Iterator[tuple[str, list[Document]]]:
    for batch in _batches(divided):
        contents = [content for _, unit in batch for content in unit.contents]
        examples = format.encode(contents, tokenizer)
        for split, unit in batch:
            try:
                yield split, [_arrays(next(examples), unit.numbers) for _ in unit.contents]
            except ValueError as error:
                raise bad_record(source, unit.record, error) from None


def _batches(divided: Iterable[tuple[str, Unit]]) -> Iterator[list[tuple[str, Unit]]]:
    batch: list[tuple[str, Unit]] = []
    size = 0
    for split, unit in divided:
        batch.append((split, unit))
        size += unit.size
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def _arrays(example: Example, numbers: tuple[float, ...]) -> Document:
    tokens = np.array(example.tokens, dtype=np.int64)
    return tokens, np.array(example.learned, dtype=bool), numbers


@contextmanager
def _new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which takes its name when it is complete and is removed on any failure."""
    refuse_existing(folder, overwrite)
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not is_corpus(folder):
        raise SettingError(f"{folder}: holds other files than a corpus; choose another folder")
    try:
        with atomic(folder, replaces=CONTENTS) as work:
            work.mkdir()
            yield work
    except OSError as error:
        raise SettingError(f"{error}; free some space or choose another folder") from None
