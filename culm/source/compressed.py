"""Files to read, decompressed by the ends of their names: .gz, .bz2 and .zst."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

from culm import files
from culm.config import SettingError
from culm.source.record import Unreadable
from culm.source.remote import File

UNREADABLE = (OSError, EOFError, zlib.error)  # the last two: damaged compressed files
BLOCK = 1 << 20  # bytes read at once
BUFFER = 1 << 16  # of what was decompressed; as much is lost before a damaged place
SMALL = 1 << 14  # bytes of zstd decompressed at once, whose text may be many times larger
WINDOW = 1 << 31  # bytes that zstd --ultra --long=31 looks back, which large dumps are made with
METHODS = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd"}
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zX": "xz"}
MAGIC |= {b"\x04\x22\x4d\x18": "LZ4"}


class Zstd(io.RawIOBase):
    """One or several frames; the library's own reader takes a truncated one for complete."""

    def __init__(self, file: BinaryIO, name: object) -> None:
        try:
            import zstandard
        except ImportError:
            file.close()
            raise SettingError(f"{name}: .zst needs the extra: pip install 'culm[files]'") from None
        self._file, self._library = file, zstandard
        self._frame: Any = None  # None between two frames
        self._held = self._rest = b""

    def readable(self) -> bool:
        """Always: what `io.BufferedReader` asks."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes into a buffer; how many.

        Raises:
            EOFError: the file is truncated.
            OSError: it is damaged.
        """
        while not self._held:
            block = self._rest or self._file.read(SMALL)
            self._rest = b""
            if not block:
                if self._frame is not None:
                    raise EOFError("the compressed data is truncated")
                return 0
            self._feed(block)
        part, self._held = self._held[: len(buffer)], self._held[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def _feed(self, block: bytes) -> None:
        if self._frame is None:
            decompressor = self._library.ZstdDecompressor(max_window_size=WINDOW)
            self._frame = decompressor.decompressobj()
        try:
            self._held = self._frame.decompress(block)
        except self._library.ZstdError as error:
            raise OSError(f"the compressed data is damaged: {error}") from None
        if self._frame.eof:
            self._rest, self._frame = self._frame.unused_data, None

    def close(self) -> None:
        """The file too."""
        self._file.close()
        super().close()


def opened(file: File) -> BinaryIO:
    """A file to read, decompressed if its name says that it is compressed."""
    raw = file.open("rb")
    match file.suffix.lower():
        case ".gz":
            return cast(BinaryIO, _Closing(gzip.GzipFile(fileobj=raw), raw))
        case ".bz2":
            return cast(BinaryIO, _Closing(bz2.BZ2File(raw), raw))
        case ".zst":
            return io.BufferedReader(Zstd(raw, file), BUFFER)
    return raw


class _Closing(io.BufferedReader):
    """Closes the file below too, which these decompressors leave open."""

    def __init__(self, raw: Any, below: BinaryIO) -> None:
        super().__init__(raw, BUFFER)
        self._below = below

    def close(self) -> None:
        super().close()
        self._below.close()


def method_of(file: File) -> str | None:
    """How a file is compressed, by its name."""
    return METHODS.get(file.suffix.lower())


def suffix_of(file: File) -> str:
    """The end of a name that says its kind: `.jsonl` of a.jsonl.gz, `.xml` of a.xml-p1p41242.bz2,
    as parts of Wikipedia are named; empty if there is none.
    """
    suffixes = file.suffixes[:-1] if method_of(file) else file.suffixes
    last = suffixes[-1].lower() if suffixes else ""
    return ".xml" if last.startswith(".xml-p") else last


def check_compression(file: File, start: bytes) -> None:
    """Refuse a file that is compressed, by its first bytes, or that Git did not fetch."""
    refuse_pointer(file)
    method = next((name for magic, name in MAGIC.items() if start.startswith(magic)), None)
    ends = {name: suffix for suffix, name in METHODS.items()}
    if method in ends:
        raise SettingError(f"{file}: compressed with {method}; end its name in {ends[method]}")
    if method is not None:
        others = ", ".join(METHODS.values())
        raise SettingError(f"{file}: compressed with {method}; decompress it, or use {others}")


def refuse_compressed(file: File, kind: str) -> None:
    """Refuse a compressed file of a kind that is read from its end."""
    if method := method_of(file):
        raise SettingError(
            f"{file}: compressed with {method}, and {kind} is read from its end; decompress it"
        )


def refuse_pointer(file: File) -> None:
    """Refuse a file here of which Git only fetched the pointer."""
    if isinstance(file, Path):
        files.refuse_pointer(file)


def start_of(opened: BinaryIO, size: int) -> bytes:
    """The next bytes of an opened file, which stay to be read."""
    return cast(io.BufferedReader, opened).peek(size)[:size]


def unreadable(file: File, error: Exception) -> SettingError:
    """The error for a file that cannot be read, or whose compressed data is truncated."""
    refuse_pointer(file)
    if isinstance(error, OSError) and error.strerror:  # the system's: another try may read it
        return SettingError(f"{file}: cannot be read: {error.strerror}")
    return Unreadable(f"{file}: cannot be read: {error}")
