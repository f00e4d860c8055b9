"""Records to token shards, in one pass and in memory that does not grow with the corpus.

Only a digest of 16 bytes is kept of each document, to drop exact duplicates.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from culm.config import SettingError
from culm.data.example import Example, RecordFormat
from culm.data.manifest import Manifest
from culm.data.shards import Document, SplitWriter
from culm.data.source import Source
from culm.log import progress
from culm.tokenizer.tokenizer import Tokenizer

Unit = list[Document]  # documents that belong together: one, or a pair


def prepare(
    source: Source,
    format: RecordFormat,
    tokenizer: Tokenizer,
    folder: str | Path,
    held_out: float = 0.02,
    seed: int = 0,
) -> Manifest:
    """Write the token shards of a corpus to a new folder.

    held_out: share of the documents in the split "held_out", chosen by a hash of the document and
    the seed; at least one. With 0 there is no such split. All else is in the split "train".
    The folder appears when everything is in it, or not at all.

    Raises:
        SettingError: nothing to read, a record of another shape, a corpus that cannot be divided,
            no room on the disk, or a folder that is already there.
    """
    with _new_folder(Path(folder)) as work:
        lengths = np.array([len(tokenizer.bytes_of(id)) for id in range(tokenizer.vocabulary)])
        lengths[tokenizer.end_of_text] = 0  # also where it is a byte of its own
        names = ("train", "held_out") if held_out else ("train",)
        writers = {name: SplitWriter(work / name, lengths) for name in names}
        try:
            divider = _Divider(held_out, seed, lambda name, unit: writers[name].append(unit))
            for unit in _units(source, format, tokenizer):
                divider.add(unit)
            divider.finish(source.name)
        finally:
            for writer in writers.values():
                writer.close()
        manifest = Manifest(
            source=source.name,
            format=str(format.model_dump()["kind"]),
            group=format.group,
            tokenizer=tokenizer.fingerprint,
            vocabulary=tokenizer.vocabulary,
            end_of_text=tokenizer.end_of_text,
            held_out=held_out,
            seed=seed,
            dropped=divider.dropped,
            splits={name: writer.facts() for name, writer in writers.items()},
        )
        tokenizer.save(work / "tokenizer")
        manifest.write(work)
    return manifest


def _units(source: Source, format: RecordFormat, tokenizer: Tokenizer) -> Iterator[Unit]:
    done = 0
    with progress("prepare", source.size, "characters") as bar:
        for number, record in enumerate(source, start=1):
            unit: Unit = []
            try:
                for example in format.examples(record, tokenizer):
                    unit.append(_arrays(example))
                    if len(unit) == format.group:
                        yield unit
                        unit = []
            except SettingError:
                raise
            except ValueError as error:
                raise SettingError(f"{source.name}: record {number}: {error}") from None
            bar.advance(size := _characters(record))
            done += size
        bar.advance(max(0, (source.size or 0) - done))  # what the notation of the files took


def _arrays(example: Example) -> Document:
    return np.array(example.tokens, dtype=np.int64), np.array(example.learned, dtype=bool)


def _characters(value: Any) -> int:
    match value:
        case str():
            return len(value)
        case dict():
            return sum(map(_characters, value.values()))
        case list():
            return sum(map(_characters, value))
    return 0


class _Divider:
    """Sends each document that was not seen before to its split.

    A key in [0, 1) comes from the content alone, so that a document stays in its split whatever
    stands around it. The one with the lowest key waits until the end: it is the one to hold out
    where no key is below the share, and the one to train on where all are.
    """

    def __init__(self, held_out: float, seed: int, write: Callable[[str, Unit], None]) -> None:
        self._held_out, self._write = held_out, write
        self._seed = seed.to_bytes(8, "little")
        self._seen: set[bytes] = set()
        self._written = {"train": 0, "held_out": 0}
        self._lowest: tuple[float, Unit] | None = None
        self.dropped = 0

    def add(self, unit: Unit) -> None:
        digest = _digest(unit)
        if digest in self._seen:
            self.dropped += 1
            return
        self._seen.add(digest)
        keyed = hashlib.blake2b(digest, key=self._seed, digest_size=8).digest()
        key = int.from_bytes(keyed, "little") / 2**64
        if self._lowest is None or key < self._lowest[0]:
            (key, unit), self._lowest = self._lowest or (key, []), (key, unit)
        if unit:
            self._send(self._split(key), unit)

    def _split(self, key: float) -> str:
        return "held_out" if key < self._held_out else "train"

    def _send(self, name: str, unit: Unit) -> None:
        self._written[name] += 1
        self._write(name, unit)

    def finish(self, source: str) -> None:
        if self._lowest is None:
            raise SettingError(f"{source}: nothing to read: there is no document in it")
        key, unit = self._lowest
        if not self._held_out:
            return self._send("train", unit)
        if not any(self._written.values()):
            raise SettingError(
                f"{source}: one document cannot be divided into training and held-out text; "
                f"set data.format.most_characters=10000 to cut it into many, data.split=paragraphs "
                f"if they are its documents, or data.held_out=0 to hold out nothing"
            )
        empty = next((name for name, count in self._written.items() if not count), None)
        if empty == "train" or not self._written["held_out"]:
            return self._send(empty or "held_out", unit)
        return self._send(self._split(key), unit)


def _digest(unit: Sequence[Document]) -> bytes:
    hasher = hashlib.blake2b(digest_size=16)
    for tokens, _ in unit:
        hasher.update(len(tokens).to_bytes(8, "little"))
        hasher.update(tokens.tobytes())
    return hasher.digest()


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name when it is complete and vanishes on any failure."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"{folder}: already there; remove it, or choose another folder")
    work = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
        work.mkdir(parents=True)
        yield work
        if folder.exists():
            folder.rmdir()
        work.rename(folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise SettingError(
                f"{folder}: the disk is full; free some space or choose another folder "
                f"(nothing was kept)"
            ) from None
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
