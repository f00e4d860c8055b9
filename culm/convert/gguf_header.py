"""Whether the header of a GGUF file can be believed, before any of it is.

The `gguf` package follows every count and length that a file gives: a file that claims 2^60 array
elements would fill the memory. Here each one is held against the bytes that are there.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from culm.config import SettingError

# Bytes of each type of number that a setting may have.
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
UINT32, STRING, ARRAY = 4, 8, 9
VERSIONS = (2, 3)


class BrokenError(Exception):
    """What is wrong with the file, in words."""


class Bytes:
    """A file read from the front, never past its end."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.place = content, 0

    def take(self, count: int) -> int:
        """Step over so many bytes; gives where they begin."""
        start = self.place
        if count > len(self.content) - start:
            raise BrokenError(f"truncated: {count:,} bytes are announced at byte {start:,}")
        self.place += count
        return start

    def number(self, form: str) -> int:
        """One little-endian number, its form as in `struct`."""
        return struct.unpack_from(f"<{form}", self.content, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        """A string with its length before it."""
        start = self.take(self.number("Q"))
        return self.content[start : self.place].decode()


def check(path: Path) -> None:
    """Refuse a file that is no GGUF, or whose header does not fit its bytes.

    Raises:
        SettingError: naming the file and what is wrong.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as all:
            _check(Bytes(all))
    except FileNotFoundError:
        raise SettingError(f"{path}: there is no such file") from None
    except (BrokenError, UnicodeDecodeError, OSError, ValueError) as error:
        raise SettingError(f"{path}: broken or no GGUF file: {error}") from None


def _check(file: Bytes) -> None:
    if file.content[file.take(4) : file.place] != b"GGUF":
        raise BrokenError("it does not begin with GGUF")
    if (version := file.number("I")) not in VERSIONS:
        raise BrokenError(f"version {version} is not read here")
    tensors, settings = file.number("Q"), file.number("Q")
    alignment = 32
    for _ in range(settings):
        name, kind = file.text(), file.number("I")
        if name == "general.alignment" and kind == UINT32:
            alignment = struct.unpack_from("<I", file.content, file.place)[0]
        _skip(file, kind)
    if alignment == 0 or alignment & (alignment - 1):
        raise BrokenError(f"an alignment of {alignment}")
    ends = [_tensor(file, alignment) for _ in range(tensors)]
    data = -(-file.place // alignment) * alignment
    if ends and data + max(ends) > len(file.content):
        raise BrokenError(f"truncated: {data + max(ends):,} bytes are announced")


def _skip(file: Bytes, kind: int) -> None:
    if kind in SCALARS:
        file.take(SCALARS[kind])
    elif kind == STRING:
        file.take(file.number("Q"))
    elif kind == ARRAY:
        inner, count = file.number("I"), file.number("Q")
        if inner in SCALARS:
            file.take(count * SCALARS[inner])
        elif inner == STRING:
            for _ in range(count):
                file.take(file.number("Q"))
        else:
            raise BrokenError(f"an array of type {inner}")
    else:
        raise BrokenError(f"a setting of type {kind}")


def _tensor(file: Bytes, alignment: int) -> int:
    """Where its data ends, from the beginning of all data."""
    name, dimensions = file.text(), file.number("I")
    if dimensions > 4:
        raise BrokenError(f"tensor {name} has {dimensions} dimensions")
    shape = [file.number("Q") for _ in range(dimensions)]
    kind, offset = file.number("I"), file.number("Q")
    if kind not in {known.value for known in GGML_QUANT_SIZES}:
        raise BrokenError(f"tensor {name} is of type {kind}")
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    elements = 1
    for length in shape:
        elements *= length
    if offset % alignment or (shape and shape[0] % block):
        raise BrokenError(f"tensor {name} does not stand on whole blocks")
    return offset + elements // block * size
