"""Records to token shards, in one pass over a corpus of any size.

    source -> units -> divided: duplicates dropped, a split for each -> encoded in batches -> shards

Memory holds one block of the source and one batch of documents. Only the
digests that find exact duplicates grow with the corpus: about 100 bytes of memory per document, or
1 GB for ten million.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from culm.config import SettingError
from culm.data.example import Content, Dialogue, Example, RecordFormat
from culm.data.format.document import DocumentFormat
from culm.data.manifest import CONTENTS, Manifest, is_corpus
from culm.data.origin import origin_of
from culm.data.shards import Document, SplitWriter
from culm.files import atomic, refuse_existing
from culm.log import Bar, progress, say
from culm.source import Invalid, Source, bad_record, bytes_in, found_in, skipped_in
from culm.source.record import LeftOut, Record
from culm.tokenizer.offsets import any_of
from culm.tokenizer.tokenizer import Tokenizer

BATCH = 1 << 20  # bytes of text that are encoded together
UNREADABLE = "records cannot be read and are left out"

Duplicates = Literal["drop", "keep"]


@dataclass(frozen=True, slots=True)
class Unit:
    """Contents that belong together: one, or a pair. place: of their record; size: in bytes;
    numbers: of the record, in the columns of the format.
    """

    contents: list[Content]
    place: str
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
    *,
    duplicates: Duplicates = "drop",
    invalid: Invalid = "error",
    overwrite: bool = False,
) -> Manifest:
    """Write the token shards of a corpus to a new folder.

    held_out: share of the documents in the split "held_out", chosen by a hash of the document and
    the seed; at least one. With 0 there is no such split. All other documents are in the split
    "train". The text decides, not the tokens: the splits are the same for every tokenizer.
    duplicates: whether only the first of equal records is kept. invalid: with "skip", a record that
    cannot be read is left out and counted.
    The folder appears when it is complete, or not at all. overwrite: replace an older corpus there.

    Raises:
        SettingError: there is nothing to read, a record has an unknown shape, the corpus cannot be
            divided, the disk is full, or the folder exists.
        InUseError: another process is writing the folder.
    """
    with _new_folder(Path(folder), overwrite) as work:
        origin = origin_of(source)
        lengths = np.array(tokenizer.sizes)
        lengths[tokenizer.end_of_text] = 0  # also where it is a byte of its own
        names = ("train", "held_out") if held_out else ("train",)
        writers = {name: SplitWriter(work / name, lengths, format.columns) for name in names}
        cut = CUT if isinstance(format, DocumentFormat) else ""
        divider = _Splitter(held_out, seed, cut, duplicates)
        notes = Notes(invalid)
        notes.counts.update(skipped_in(source))
        try:
            with progress("prepare", source.size, "bytes") as bar:
                units = _units(source, format, bar, notes)
                divided = divider.divide(units, source.name, notes)
                for name, documents in _encoded(divided, format, tokenizer, notes):
                    writers[name].append(documents)
        finally:
            for writer in writers.values():
                writer.close()
        splits = {name: writer.facts() for name, writer in writers.items()}
        manifest = Manifest(
            source=source.name, origin=origin, held_out=held_out, seed=seed,
            dropped=divider.dropped, notes=notes.counts, format=format.kind, gives=format.gives,
            group=format.group, columns=format.columns, tokenizer=tokenizer.fingerprint,
            template=None if format.kind == "document" else tokenizer.template_fingerprint,
            vocabulary=tokenizer.vocabulary, end_of_text=tokenizer.end_of_text, splits=splits,
        )  # fmt: skip
        tokenizer.save(work / "tokenizer")
        manifest.write(work)
    return manifest


class Notes:
    """What was not used or left out of a corpus: counts by a phrase that follows the number."""

    def __init__(self, invalid: Invalid) -> None:
        self.counts = Counter[str]()
        self._skips = invalid == "skip"

    def skipped(self, error: ValueError) -> None:
        """Count a record that is left out, or raise its error."""
        if isinstance(error, LeftOut):
            self.counts[str(error)] += 1
        elif self._skips:
            if not self.counts[UNREADABLE]:
                say(f"Left out, as data.invalid=skip asks: {error}")
            self.counts[UNREADABLE] += 1
        else:
            raise SettingError(f"{error}; correct it, or set data.invalid=skip to leave it out")

    def unread(self, keys: Iterable[str], what: str, reader: str) -> None:
        """Count keys that nothing has read."""
        self.counts.update(f"{what} have the key {key!r}, which {reader}" for key in keys)


def _units(source: Source, format: RecordFormat, bar: Bar, notes: Notes) -> Iterator[Unit]:
    done = 0

    def read(record: Record) -> Iterator[tuple[tuple[float, ...], list[Content]]]:
        yield format.numbers(record), list(format.contents(record))

    for record, [(numbers, contents)] in found_in(source, read, notes.skipped):
        notes.unread(record.unread, "records", "is not used")
        for start in range(0, len(contents), format.group):
            part = contents[start : start + format.group]
            yield (unit := Unit(part, record.place, bytes_in(part), numbers))
            bar.advance(unit.size)
            done += unit.size
    bar.advance(max(0, (source.size or 0) - done))  # what quotes and braces of the files took


class _Splitter:
    """A split for each unit that was not seen before.

    A key in [0, 1) comes from the content alone, so that a document stays in its split whatever
    stands around it. The unit with the lowest key waits until the end: it is the one to hold out
    where no key is below the share, and the one to train on where all are.
    """

    def __init__(self, held_out: float, seed: int, cut: str, duplicates: Duplicates) -> None:
        """cut: what to say of how one document becomes several."""
        self._keep = duplicates == "keep"
        self._held_out, self._seed, self._cut = held_out, seed.to_bytes(8, "little"), cut
        self._seen: set[bytes] = set()
        self.dropped = 0

    def divide(
        self, units: Iterable[Unit], source: str, notes: Notes
    ) -> Iterator[tuple[str, Unit]]:
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
            why = "; ".join(f"{count:,} {phrase}" for phrase, count in notes.counts.items())
            raise SettingError(f"{source}: nothing to read: {why or 'it contains no document'}")
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
            if digest in self._seen and not self._keep:
                self.dropped += 1
                continue
            self._seen.add(digest)
            keyed = hashlib.blake2b(digest, key=self._seed, digest_size=8).digest()
            yield int.from_bytes(keyed, "little") / 2**64, unit


def _digest(unit: Unit) -> bytes:
    said = [
        one.messages if isinstance(one, Dialogue) and one.tools is None else one
        for one in unit.contents
    ]
    written = json.dumps(said, sort_keys=True, default=str)
    return hashlib.blake2b(written.encode(), digest_size=16).digest()


def _encoded(
    divided: Iterable[tuple[str, Unit]],
    format: RecordFormat,
    tokenizer: Tokenizer,
    notes: Notes,
) -> Iterator[tuple[str, list[Document]]]:
    special = any_of(tokenizer.specials)
    for batch in _batches(divided):
        contents = [content for _, unit in batch for content in unit.contents]
        documents = _documents(format, [unit for _, unit in batch], tokenizer, notes)
        for text in contents:
            names = set(special.findall(text)) if isinstance(text, str) else ()
            notes.counts.update(
                f"documents contain {name} as text; data.separator={name!r} would divide them there"
                for name in names
            )
        for (split, unit), found in zip(batch, documents, strict=True):
            if isinstance(found, ValueError):
                notes.skipped(bad_record(unit.place, found))
            else:
                yield split, found


def _documents(
    format: RecordFormat, units: Sequence[Unit], tokenizer: Tokenizer, notes: Notes
) -> Iterator[list[Document] | ValueError]:
    """Those of each unit, or why it has none, one after the other: an example needs 20 times the
    memory of its arrays.
    """
    start = 0
    while start < len(units):
        contents = [content for unit in units[start:] for content in unit.contents]
        examples = format.encode(contents, tokenizer)
        for unit in units[start:]:
            start += 1
            try:
                yield [_document(next(examples), unit, notes) for _ in unit.contents]
            except ValueError as error:
                yield error
                break  # `examples` ended with it


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


def _document(example: Example, unit: Unit, notes: Notes) -> Document:
    notes.unread(example.unread, "messages", "the chat template does not use")
    tokens = np.array(example.tokens, dtype=np.int64)
    return tokens, np.array(example.learned, dtype=bool), unit.numbers


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
