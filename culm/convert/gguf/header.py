"""The header of a GGUF file: its metadata, and a check that its tensors fit the file.

The `gguf` package trusts every count and length in a file: a file that claims 2^60 array elements
would fill the memory. Here each one is checked against the size of the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from culm.config import SettingError
from culm.files import refuse_pointer

# The `struct` code of each numeric type of a setting.
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)


class BrokenError(Exception):
    """A sentence on what is wrong with the file."""


class ByteReader:
    """Reads a file from the front, never past its end."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.place = content, 0

    def take(self, count: int) -> int:
        """Skip this many bytes; returns where they start."""
        start = self.place
        if count > len(self.content) - start:
            raise BrokenError(f"truncated: {count:,} bytes are declared at byte {start:,}")
        self.place += count
        return start

    def numbers(self, form: str, count: int = 1) -> list[Any]:
        """Little-endian numbers; form: as in `struct`."""
        start = self.take(count * struct.calcsize(f"<{form}"))
        return list(struct.unpack_from(f"<{count}{form}", self.content, start))

    def number(self, form: str) -> int:
        """One number."""
        return int(self.numbers(form)[0])

    def text(self) -> str:
        """A string with its length before it."""
        start = self.take(self.number("Q"))
        return self.content[start : self.place].decode()

    def value(self, kind: int) -> Any:
        """A setting of this type; arrays contain numbers or strings, not arrays."""
        if kind in SCALARS:
            return self.numbers(SCALARS[kind])[0]
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise BrokenError(f"a setting of type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in SCALARS:
            return self.numbers(SCALARS[inner], count)
        if inner != STRING:
            raise BrokenError(f"an array of type {inner}")
        self.fits(count, 8)
        return [self.text() for _ in range(count)]

    def fits(self, count: int, size: int) -> None:
        """Check that the file can contain this many items of at least this size."""
        if count * size > len(self.content) - self.place:
            raise BrokenError(f"truncated: {count:,} items are declared at byte {self.place:,}")


class Extent(NamedTuple):
    """The range of a tensor, in bytes from the start of all data."""

    start: int
    end: int
    name: str


def read(path: Path) -> dict[str, Any]:
    """The metadata of a file whose header fits its bytes.

    Raises:
        SettingError: naming the file, what is wrong, and where.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as all:
            return _read(ByteReader(all))
    except FileNotFoundError:
        raise SettingError(f"{path}: there is no such file") from None
    except (BrokenError, UnicodeDecodeError, OSError, ValueError) as error:
        refuse_pointer(path)
        problem = f"broken or not a GGUF file: {error}; download or convert it again"
        raise SettingError(f"{path}: {problem}") from None


def _read(file: ByteReader) -> dict[str, Any]:
    if file.content[file.take(4) : file.place] != b"GGUF":
        raise BrokenError("it does not start with GGUF")
    if (version := file.number("I")) not in VERSIONS:
        raise BrokenError(f"version {version} is not read here")
    tensors, settings = file.number("Q"), file.number("Q")
    file.fits(tensors, 24)
    file.fits(settings, 12)
    values: dict[str, Any] = {}
    for _ in range(settings):
        name, kind = file.text(), file.number("I")
        try:
            value = file.value(kind)
        except (BrokenError, UnicodeDecodeError) as error:
            raise BrokenError(f"{name}: {error}") from None
        if name in values:
            raise BrokenError(f"{name} occurs twice")
        values[name] = value
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise BrokenError(f"general.alignment: {alignment!r} is not a power of two")
    extents = sorted(_tensor(file, alignment) for _ in range(tensors))
    _check_overlap(extents)
    data = -(-file.place // alignment) * alignment
    if extents and data + (end := max(each.end for each in extents)) > len(file.content):
        raise BrokenError(f"truncated: {data + end:,} bytes are declared")
    return values


def _check_overlap(extents: list[Extent]) -> None:
    names = {each.name for each in extents}
    if len(names) < len(extents):
        raise BrokenError("a tensor occurs twice")
    for before, after in pairwise(extents):
        if after.start < before.end:
            raise BrokenError(f"tensors {before.name} and {after.name} overlap")


def _tensor(file: ByteReader, alignment: int) -> Extent:
    name, dimensions = file.text(), file.number("I")
    if not 1 <= dimensions <= 4:
        raise BrokenError(f"tensor {name} has {dimensions} dimensions")
    shape = file.numbers("Q", dimensions)
    if not all(shape):
        raise BrokenError(f"tensor {name} is empty: its shape is {shape}")
    kind, offset = file.number("I"), file.number("Q")
    if kind not in {known.value for known in GGML_QUANT_SIZES}:
        raise BrokenError(f"tensor {name} is of type {kind}")
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    if offset % alignment or shape[0] % block:
        raise BrokenError(f"tensor {name} does not fill complete blocks")
    return Extent(offset, offset + math.prod(shape) // block * size, name)
