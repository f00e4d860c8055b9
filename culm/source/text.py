"""Plain text files."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from culm.config import SettingError
from culm.files import refuse_pointer
from culm.source.pieces import pieces
from culm.source.record import Record, place_of

BLOCK = 1 << 20  # bytes read at once
LONGEST = 1 << 22  # characters: longer text becomes several documents, so memory stays bounded

SEPARATORS = {"file": None, "paragraphs": r"\n[ \t\r]*\n\s*", "lines": r"\r?\n"}
UNREADABLE = (OSError, EOFError, zlib.error)  # the last two: damaged .gz files
ZIP = b"PK\x03\x04"  # .docx, .odt, .epub and others
BINARY = (ZIP, b"%PDF")
COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zX": "xz"}
COMPRESSED |= {b"\x04\x22\x4d\x18": "LZ4"}
UTF_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)  # the first one begins as UTF-16's
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
ERRORS = {"error": "strict", "replace": "replace", "skip": "ignore"}


def records(
    path: Path, split: str = "file", invalid: str = "error", separator: str | None = None
) -> Iterator[Record]:
    """{"text": ...} for each document, with the line where it begins; empty ones are left out.

    split: "file" is one document a file, "paragraphs" are divided by blank lines, or "lines".
    separator: the text between documents, in place of a split.
    invalid: bytes that are not UTF-8 are an "error", or become U+FFFD ("replace"), or "skip".
    """
    between = SEPARATORS[split] if separator is None else re.escape(separator)
    line = 1
    for text, gap in _divided(path, invalid, between):
        if text.strip():
            blank = text[: len(text) - len(text.lstrip())].count("\n")
            shown = text if gap is None else text.strip("\r\n")
            yield Record({"text": shown}, place_of(path, line + blank))
        line += text.count("\n") + (gap or "").count("\n")


def _divided(path: Path, invalid: str, between: str | None) -> Iterator[tuple[str, str | None]]:
    """Each document with what separates it from the next one; None where it was cut."""
    held = ""
    for block in decoded(path, invalid):
        held += block
        if between is not None:
            *whole, held = re.split(f"({between})", held)  # the last part may be unfinished
            yield from zip(whole[::2], whole[1::2], strict=True)
        if len(held) > LONGEST:
            *whole, held = pieces(held, LONGEST)
            yield from ((text, None) for text in whole)
    yield held, None if between is None else ""


def decoded(path: Path, invalid: str = "error") -> Iterator[str]:
    """The text of a file in blocks.

    Raises:
        SettingError: with the file and the offset of the first byte that is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(ERRORS[invalid])
    offset = 0
    for block in blocks(path):
        if invalid == "error" and b"\0" in block:
            raise no_text(path, b"" if offset else block)
        pending = len(decoder.getstate()[0])
        text = _decode(decoder, block, path, offset - pending)
        if offset == 0:
            text = text.removeprefix("\ufeff")
        offset += len(block)
        yield text
    pending = len(decoder.getstate()[0])
    yield _decode(decoder, b"", path, offset - pending)


def _decode(decoder: codecs.IncrementalDecoder, block: bytes, path: Path, offset: int) -> str:
    try:
        return decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
        raise not_utf8(path, offset + error.start) from None


def not_utf8(path: Path, offset: int) -> SettingError:
    """The error for a file that is not UTF-8 text from a byte on."""
    with opened(path) as file:
        first = file.read(BLOCK)
    if b"\0" in first or first.startswith((*UTF_32, *UTF_16)):
        return no_text(path, first)
    return SettingError(
        f"{place_of(path, _line_at(path, offset))}: byte {offset:,} is not UTF-8; save the file as "
        "UTF-8, or in a run file set data.invalid=replace (or skip) to read it anyway"
    )


def no_text(path: Path, start: bytes) -> SettingError:
    """The error for a file with zero bytes: UTF-16 without a mark at its start is valid UTF-8."""
    if start.startswith((*UTF_32, *UTF_16)):
        name = "UTF-32" if start.startswith(UTF_32) else "UTF-16"
        return SettingError(f"{path}: {name} text; save it as UTF-8")
    return SettingError(
        f"{path}: not text: it contains zero bytes; save it as UTF-8, or leave it out"
    )


def _line_at(path: Path, offset: int) -> int:
    """The number of the line that has a byte of a file."""
    line = 1
    with opened(path) as file:
        while offset > 0 and (block := file.read(min(BLOCK, offset))):
            line += block.count(b"\n")
            offset -= len(block)
    return line


def blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed if its name ends in .gz."""
    try:
        with opened(path) as file:
            _check_start(path, file.read(len(ZIP)))
        with opened(path) as file:
            while block := file.read(BLOCK):
                yield block
    except UNREADABLE as error:
        raise unreadable(path, error) from None


def _check_start(path: Path, start: bytes) -> None:
    if start in BINARY:
        raise SettingError(
            f"{path}: not text but a document of another program; save its text as .txt"
        )
    check_compression(path, start)


def check_compression(path: Path, start: bytes) -> None:
    """Refuse a file that is compressed, by its first bytes, or that Git did not fetch."""
    refuse_pointer(path)
    method = next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), None)
    if method == "gzip":
        raise SettingError(f"{path}: compressed with gzip; end its name in .gz")
    if method is not None:
        raise SettingError(f"{path}: compressed with {method}; decompress it, or use gzip")


def opened(path: Path) -> BinaryIO:
    """A file to read, decompressed if its name ends in .gz."""
    return cast(BinaryIO, gzip.open(path, "rb") if is_gzip(path) else path.open("rb"))


def is_gzip(path: Path) -> bool:
    """Whether a name says that a file is compressed with gzip."""
    return path.suffix.lower() == ".gz"


def unreadable(path: Path, error: Exception) -> SettingError:
    """The error for a file that cannot be read, or whose compressed data is truncated."""
    refuse_pointer(path)
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return SettingError(f"{path}: cannot be read: {reason}")
