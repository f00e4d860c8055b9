"""Plain text files."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator

from culm.config import SettingError
from culm.source.compressed import (
    BLOCK,
    UNREADABLE,
    check_compression,
    opened,
    start_of,
    unreadable,
)
from culm.source.pieces import pieces
from culm.source.reading import Reading
from culm.source.record import Record, Unreadable, place_of
from culm.source.remote import File

LONGEST = 1 << 22  # characters: longer text becomes several documents, so memory stays bounded

SEPARATORS = {"file": None, "paragraphs": r"\n[ \t\r]*\n\s*", "lines": r"\r?\n"}
ZIP = b"PK\x03\x04"  # .docx, .odt, .epub and others
BINARY = (ZIP, b"%PDF")
UTF_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)  # the first one begins as UTF-16's
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
ERRORS = {"error": "strict", "replace": "replace", "skip": "ignore"}
ERRORS["mark"] = "surrogateescape"  # for readers that leave out the record


def records(file: File, reading: Reading) -> Iterator[Record]:
    """{"text": ...} for each document, with the line where it begins; empty ones are left out."""
    line = 1
    for text, gap in _divided(decoded(file, reading.invalid), reading):
        if text.strip():
            blank = text[: len(text) - len(text.lstrip())].count("\n")
            shown = text if gap is None else text.strip("\r\n")
            yield Record({"text": shown}, place_of(file, line + blank))
        line += text.count("\n") + (gap or "").count("\n")


def documents(texts: Iterable[str], reading: Reading, place: str) -> Iterator[Record]:
    """The same of text that was extracted from a file, whose lines say nothing of a place."""
    for text, gap in _divided(texts, reading):
        if text.strip():
            yield Record({"text": text if gap is None else text.strip("\r\n")}, place)


def _divided(texts: Iterable[str], reading: Reading) -> Iterator[tuple[str, str | None]]:
    """Each document with what separates it from the next one; None where it was cut."""
    own = reading.separator
    between = SEPARATORS[reading.split] if own is None else re.escape(own)
    held = ""
    for block in texts:
        held += block
        if between is not None:
            *whole, held = re.split(f"({between})", held)  # the last part may be unfinished
            yield from zip(whole[::2], whole[1::2], strict=True)
        if len(held) > LONGEST:
            *whole, held = pieces(held, LONGEST)
            yield from ((text, None) for text in whole)
    yield held, None if between is None else ""


def decoded(file: File, invalid: str = "error") -> Iterator[str]:
    """The text of a file in blocks.

    Raises:
        SettingError: with the file and the offset of the first byte that is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(ERRORS[invalid])
    offset = 0
    for block in blocks(file):
        if invalid in ("error", "mark") and b"\0" in block:
            raise no_text(file, b"" if offset else block)
        pending = len(decoder.getstate()[0])
        text = _decode(decoder, block, file, offset - pending)
        if offset == 0:
            text = text.removeprefix("\ufeff")
        offset += len(block)
        yield text
    pending = len(decoder.getstate()[0])
    yield _decode(decoder, b"", file, offset - pending)


def _decode(decoder: codecs.IncrementalDecoder, block: bytes, file: File, offset: int) -> str:
    try:
        return decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
        raise not_utf8(file, offset + error.start) from None


def not_utf8(file: File, offset: int) -> SettingError:
    """The error for a file that is not UTF-8 text from a byte on."""
    with opened(file) as content:
        first = content.read(BLOCK)
    if b"\0" in first or first.startswith((*UTF_32, *UTF_16)):
        return no_text(file, first)
    return Unreadable(
        f"{place_of(file, _line_at(file, offset))}: byte {offset:,} is not UTF-8; save the file as "
        "UTF-8, or in a run file set data.invalid=replace (or skip) to read it anyway"
    )


def no_text(file: File, start: bytes) -> SettingError:
    """The error for a file with zero bytes: UTF-16 without a mark at its start is valid UTF-8."""
    if start.startswith((*UTF_32, *UTF_16)):
        name = "UTF-32" if start.startswith(UTF_32) else "UTF-16"
        return Unreadable(f"{file}: {name} text; save it as UTF-8")
    return Unreadable(
        f"{file}: not text: it contains zero bytes; save it as UTF-8, or leave it out"
    )


def _line_at(file: File, offset: int) -> int:
    """The number of the line that has a byte of a file."""
    line = 1
    with opened(file) as content:
        while offset > 0 and (block := content.read(min(BLOCK, offset))):
            line += block.count(b"\n")
            offset -= len(block)
    return line


def blocks(file: File) -> Iterator[bytes]:
    """The bytes of a file, decompressed if its name says so."""
    try:
        with opened(file) as bytes_:
            _check_start(file, start_of(bytes_, len(ZIP)))
            while block := bytes_.read(BLOCK):
                yield block
    except UNREADABLE as error:
        raise unreadable(file, error) from None


def _check_start(file: File, start: bytes) -> None:
    if start in BINARY:
        raise SettingError(
            f"{file}: not text but a document of another program; save its text as .txt"
        )
    check_compression(file, start)
