"""Files of tensors, in the format safetensors.

8 bytes: length N of the header     N bytes of JSON: name -> dtype, shape, data_offsets     data

Files from elsewhere are not trusted: each number of the header is checked against the others
and against the bytes that are there, before memory is taken for any of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from culm.config import SettingError
from culm.files import refuse_pointer

KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # bytes; the library's own limit
METADATA = "__metadata__"


class _BrokenError(Exception):
    """A sentence on what is wrong with a file."""


class _Place(NamedTuple):
    """One tensor of a file; start, stop: bytes from the start of all data."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class _Header(NamedTuple):
    """tensors: in the order of their data. begin: offset of all data in the file."""

    tensors: list[_Place]
    metadata: dict[str, str]
    begin: int


def read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file by name, one at a time: only one is in memory.

    Raises:
        SettingError: the file is missing, truncated, or no safetensors file; it names the tensor.
    """
    header = _header(path)
    with path.open("rb") as file:
        for name, dtype, shape, start, _ in header.tensors:
            tensor = torch.empty(shape, dtype=dtype)
            file.seek(header.begin + start)
            if file.readinto(_bytes(tensor)) != tensor.nbytes:
                raise _refused(path, f"{name} ends too soon")
            yield name, tensor


def read_pickled(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an older PyTorch file by name; only tensors are read, and no code runs.

    Raises:
        SettingError: the file is missing or broken, or holds something else.
    """
    if not path.is_file():
        raise SettingError(f"{path}: there is no such file")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a broken archive may raise anything
        reason = str(error).splitlines()[0]
        raise SettingError(
            f"{path}: broken, or more than tensors, which is not read: {reason}"
        ) from None
    if not isinstance(held, dict) or not all(isinstance(t, Tensor) for t in held.values()):
        raise SettingError(f"{path}: it holds something other than tensors by name")
    for name in list(held):
        yield str(name), held.pop(name)


def read_names(path: Path) -> list[str]:
    """The names of the tensors of a file.

    Raises:
        SettingError: as `read_safetensors`.
    """
    return [tensor.name for tensor in _header(path).tensors]


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file.

    Raises:
        SettingError: as `read_safetensors`.
    """
    return _header(path).metadata


def write_safetensors(
    path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name: the same bytes each time, with default permissions.

    `save_file` writes owner-only files, and metadata in random order.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    path.chmod(mode)
    if metadata:
        _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header[METADATA] = dict(sorted(header[METADATA].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def stream_safetensors(
    path: Path, shapes: Mapping[str, Sequence[int]], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Write tensors as they come, so that only one is in memory.

    shapes: of every tensor that will come, by name.
    """
    codes = {dtype: code for code, dtype in KINDS.items()}
    longest, far = max(KINDS, key=len), 1 << 60
    room = len(_json({name: _entry(longest, shape, far, far) for name, shape in shapes.items()}))
    entries: dict[str, Any] = {}
    with path.open("wb") as file:
        file.seek(8 + room)
        for name, tensor in tensors:
            start = file.tell() - 8 - room
            file.write(_bytes(tensor.contiguous()))
            stop = file.tell() - 8 - room
            entries[name] = _entry(codes[tensor.dtype], tensor.shape, start, stop)
        file.seek(0)
        file.write(room.to_bytes(8, "little") + _json(entries).ljust(room))


def _entry(code: str, shape: Sequence[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": code, "shape": list(shape), "data_offsets": [start, stop]}


def _json(entries: Mapping[str, Any]) -> bytes:
    text = json.dumps({METADATA: {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    return text.ljust(-(-len(text) // 8) * 8)  # so that the data start at a multiple of 8


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def _refused(path: Path, reason: str) -> SettingError:
    return SettingError(f"{path}: broken or no safetensors file: {reason}; copy it again")


def _header(path: Path) -> _Header:
    try:
        with path.open("rb") as file:
            return _checked(file, path.stat().st_size)
    except (FileNotFoundError, IsADirectoryError):
        raise SettingError(f"{path}: there is no such file; copy the whole folder again") from None
    except (_BrokenError, OSError, ValueError, RecursionError) as error:
        refuse_pointer(path)
        raise _refused(path, str(error)) from None


def _checked(file: BinaryIO, size: int) -> _Header:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, LONGEST_HEADER):
        raise _BrokenError(f"truncated: a header of {length:,} bytes is announced in {size:,}")
    entries = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
    if not isinstance(entries, dict):
        raise _BrokenError("its header is no mapping")
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _BrokenError(f"{METADATA} holds something other than texts")
    data = size - 8 - length
    tensors = [_place(name, entry, data) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    end, last = 0, "the header"
    for tensor in tensors:
        if tensor.start != end:
            word = "overlap" if tensor.start < end else "leave a gap"
            raise _BrokenError(f"{last} and {tensor.name} {word}")
        end, last = tensor.stop, tensor.name
    if end != data:
        raise _BrokenError(f"{data - end:,} bytes after {last} belong to no tensor")
    return _Header(tensors, metadata, 8 + length)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON mapping without duplicate names, of which the last would silently win."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _BrokenError(f"{name} is there twice")
        found[name] = value
    return found


def _place(name: str, entry: object, data: int) -> _Place:
    """One entry of the header, checked against the `data` bytes of the file."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _BrokenError(f"{name} has no dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in KINDS:
        raise _BrokenError(f"{name} is of the dtype {code!r}, which is not read here")
    if not (_counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise _BrokenError(f"{name} has a shape or data_offsets that are no counts")
    start, stop = offsets
    if not start <= stop <= data:
        raise _BrokenError(
            f"truncated: {name} is announced at bytes {start:,} to {stop:,} of {data:,}"
        )
    needed = prod(shape) * KINDS[code].itemsize
    if stop - start != needed or max(shape, default=0) >= 1 << 63:
        raise _BrokenError(f"{name} has {stop - start:,} bytes, its shape {shape} needs {needed:,}")
    return _Place(name, KINDS[code], tuple(shape), start, stop)


def _counts(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)
