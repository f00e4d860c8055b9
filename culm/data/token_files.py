"""Text that others have encoded: `.bin` shards as nanoGPT and llm.c write them, and our own.

    nanoGPT   uint16 or uint32, documents end to end
    llm.c     the same after a header of 256 int32: a magic number, a version, the count of tokens

The ids are decoded with the tokenizer that made them, so that the model may have another one, and
duplicates, held-out text and bits per byte are the same as those of the text itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from culm.config import SettingError
from culm.data.manifest import NAME, Manifest
from culm.data.prepared import Prepared
from culm.source.compressed import UNREADABLE, opened, start_of, suffix_of, unreadable
from culm.source.reading import Invalid
from culm.source.record import Record, Unreadable
from culm.source.remote import File, Remote, is_url
from culm.tokenizer.tokenizer import Tokenizer

SUFFIX = ".bin"
HEADER = 256 * 4  # bytes
WIDTHS = {(20240520, 1): 2, (20240801, 7): 4}  # bytes of a token, by llm.c's magic and version
BLOCK = 1 << 18  # tokens that are read at once
LONGEST = 1 << 20  # tokens: a longer document becomes several, so that memory stays bounded


def is_token_file(name: str | Path) -> bool:
    """Whether a path or URL is a `.bin` file, by its name."""
    return suffix_of(Remote(str(name)) if is_url(str(name)) else Path(name)) == SUFFIX


def is_prepared(name: str | Path) -> bool:
    """Whether a path is a folder with token shards of ours."""
    return not is_url(str(name)) and (Path(name).expanduser() / NAME).is_file()


@dataclass(frozen=True)
class TokenFiles:
    """The documents of `.bin` files, divided at the end-of-text token.

    tokenizer: the folder of the one that made them. other: files of the folder that are not read.
    """

    name: str
    paths: Sequence[File]
    tokenizer: Path
    invalid: Invalid = "error"
    other: int = 0

    @property
    def files(self) -> Sequence[File]:
        return self.paths

    @property
    def size(self) -> int | None:
        return None  # of its text

    @property
    def left_out(self) -> Mapping[str, int]:
        phrase = f"files in {self.name} are no token shards ({SUFFIX}) and are not read"
        return {phrase: self.other} if self.other else {}

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        try:
            return Tokenizer.load(self.tokenizer.expanduser())
        except SettingError as error:
            raise SettingError(f"data.tokenizer: {error}") from None

    def __iter__(self) -> Iterator[Record]:
        for file in self.paths:
            try:
                yield from self._records(file)
            except Unreadable as error:
                if self.invalid != "skip":
                    raise
                yield Record({}, str(file), str(error), failure=Unreadable)

    def _records(self, file: File) -> Iterator[Record]:
        tokenizer, held, start = self._tokenizer, np.empty(0, np.uint32), 0
        for block in self._blocks(file):
            held = np.concatenate([held, block])
            cuts = np.flatnonzero(held == tokenizer.end_of_text)
            *whole, held = np.split(held, cuts + 1)
            if len(held) > LONGEST:
                whole, held = [*whole, held], held[:0]
            for ids in whole:
                yield from _record(ids, tokenizer, file, start)
                start += len(ids)
        yield from _record(held, tokenizer, file, start)

    def _blocks(self, file: File) -> Iterator[np.ndarray]:
        """Token ids, each of which the tokenizer knows."""
        known, seen = self._tokenizer.vocabulary, 0
        try:
            with opened(file) as content:
                width, count = _layout(content, file, known)
                while data := _read(content, BLOCK * width):
                    if len(data) % width:
                        raise Unreadable(
                            f"{file}: truncated after token {seen + len(data) // width:,}"
                        )
                    ids = np.frombuffer(data, dtype=f"<u{width}").astype(np.uint32)
                    _check(ids, known, file, seen)
                    seen += len(ids)
                    yield ids
        except UNREADABLE as error:
            raise unreadable(file, error) from None
        if count is not None and seen != count:
            raise Unreadable(f"{file}: {seen:,} tokens where its header says {count:,}")


@dataclass(frozen=True)
class PreparedText:
    """The training text of a corpus that `prepare` wrote; what it holds out stays held out."""

    folder: Path

    @property
    def name(self) -> str:
        return str(self.folder)

    @property
    def size(self) -> int | None:
        return self._manifest.splits["train"].bytes

    @property
    def left_out(self) -> Mapping[str, int]:
        held = self._manifest.splits.get("held_out")
        phrase = f"documents of {self.folder} are held out there and are not read"
        return {} if held is None else {phrase: held.documents}

    @property
    def files(self) -> Sequence[File]:
        names = self._manifest.splits["train"].files
        return [self.folder / NAME, *(self.folder / "train" / name for name in names)]

    @cached_property
    def _manifest(self) -> Manifest:
        manifest = Manifest.read(self.folder)
        if manifest.format != "document":
            raise SettingError(
                f"data.path: {self.folder} holds records of the format {manifest.format}, not "
                "plain text; data.prepared reads it as it is"
            )
        return manifest

    def __iter__(self) -> Iterator[Record]:
        prepared = Prepared.open(self.folder, "train", self._manifest.tokenizer)
        tokenizer = Tokenizer.load(self.folder / "tokenizer")
        if tokenizer.fingerprint != self._manifest.tokenizer:
            raise SettingError(f"{self.folder}: its tokenizer changed since; prepare it again")
        for number in range(len(prepared.offsets) - 1):
            ids, _ = prepared.read(*prepared.offsets[number : number + 2].tolist())
            _check(ids, tokenizer.vocabulary, self.folder, int(prepared.offsets[number]))
            yield from _record(ids, tokenizer, self.folder, int(prepared.offsets[number]))


def _record(ids: np.ndarray, tokenizer: Tokenizer, file: File, start: int) -> Iterator[Record]:
    """A document without the tokens around it; nothing of an empty one."""
    around = [tokenizer.end_of_text, *tokenizer.start]
    inner = np.flatnonzero(~np.isin(ids, around))
    if len(inner):
        text = tokenizer.decode(ids[inner[0] : inner[-1] + 1].tolist(), specials=True)
        yield Record({"text": text}, f"{file}: token {start + int(inner[0]):,}")


def _layout(content: BinaryIO, file: File, vocabulary: int) -> tuple[int, int | None]:
    """Bytes of a token, and how many tokens there are, if the file says it; past its header."""
    start = start_of(content, HEADER)
    if len(start) >= HEADER:
        magic, version, count = np.frombuffer(start[:12], dtype="<i4").tolist()
        if width := WIDTHS.get((magic, version)):
            content.read(HEADER)
            return width, count
        if magic in {known for known, _ in WIDTHS}:
            raise SettingError(f"{file}: version {version} of llm.c's shards, which is not known")
    width = 2 if vocabulary <= 1 << 16 else 4
    if (
        width == 2
        and len(start) >= 8
        and not np.frombuffer(start[: len(start) // 4 * 4], "<u2")[1::2].any()
    ):
        raise SettingError(
            f"{file}: every second token of two bytes is 0, so it seems to hold tokens of four "
            f"bytes, which a vocabulary of {vocabulary:,} does not need; write them as uint16"
        )
    return width, None


def _read(content: BinaryIO, size: int) -> bytes:
    """As many bytes, fewer only at the end: a stream may give what it has."""
    parts, left = list[bytes](), size
    while left and (part := content.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _check(ids: np.ndarray, known: int, file: File, start: int) -> None:
    if len(beyond := np.flatnonzero(ids >= known)):
        place = int(beyond[0])
        raise SettingError(
            f"{file}: token {start + place:,} is {int(ids[place])}, beyond the vocabulary of "
            f"{known:,}; give the tokenizer that made it with data.tokenizer=FOLDER"
        )
