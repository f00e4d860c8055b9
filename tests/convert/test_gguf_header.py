"""Headers of GGUF files: what they hold, and every way to lie that we could think of."""

import struct
import tracemalloc
from contextlib import suppress

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from culm.config import SettingError
from culm.convert.gguf import header as gguf_header

U8, U32, STRING, ARRAY, U64 = 0, 4, 8, 9, 10


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def setting(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file(tmp_path, *parts: bytes, tensors: list[bytes] = (), data: int = 256, counts=None):
    """A file of these settings and tensors, with so many bytes of numbers."""
    counts = counts or (len(tensors), len(parts))
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join([*parts, *tensors])
    path = tmp_path / "m.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(data))
    return path


def test_values_are_those_of_the_package(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for number, add in enumerate((
        writer.add_uint8, writer.add_int8, writer.add_uint16, writer.add_int16, writer.add_uint32,
        writer.add_int32, writer.add_float32, writer.add_uint64, writer.add_int64,
        writer.add_float64, writer.add_bool,
    )):  # fmt: skip
        add(f"value.{number}", 1)
    writer.add_string("value.text", "Où?")
    for number, values in enumerate(([1, 2], [0.5, -1.0], ["a", "ü", ""], [True, False])):
        writer.add_array(f"array.{number}", values)
    writer.add_tensor("one", np.ones((3, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields.items()
    theirs = {key: field.contents() for key, field in fields if not key.startswith("GGUF.")}
    found = gguf_header.read(tmp_path / "m.gguf")
    assert found == theirs
    assert {key: type(value) for key, value in found.items()} == {
        key: type(value) for key, value in theirs.items()
    }


LIES = {
    "a huge array": ([setting("a", ARRAY, array(U8, 2**60))], [], "a: truncated: .* declared"),
    "of strings": ([setting("a", ARRAY, array(STRING, 2**60))], [], "a: truncated: .* declared"),
    "a huge string": ([setting("a", STRING, struct.pack("<Q", 2**63))], [], "a: truncated: 9,223"),
    "no type": ([setting("a", 77, b"")], [], "a: a setting of type 77"),
    "arrays inside": ([setting("a", ARRAY, array(ARRAY, 1))], [], "a: an array of type 9"),
    "no text": ([setting("a", STRING, struct.pack("<Q", 1) + b"\xff")], [], "a: 'utf-8' codec"),
    "twice": (2 * [setting("a", U8, b"1")], [], "a occurs twice"),
    "alignment": (
        [setting("general.alignment", U32, struct.pack("<I", 24))],
        [],
        "general.alignment: 24 is not a power of two",
    ),
    "alignment of text": (
        [setting("general.alignment", STRING, text("32"))],
        [],
        "general.alignment: '32' is not a power of two",
    ),
    "dimensions": ([], [tensor("w", (1,) * 5)], "tensor w has 5 dimensions"),
    "no dimension": ([], [tensor("w", ())], "tensor w has 0 dimensions"),
    "empty": ([], [tensor("w", (8, 0))], r"tensor w is empty: its shape is \[8, 0\]"),
    "kind": ([], [tensor("w", (8,), kind=99)], "tensor w is of type 99"),
    "half a block": ([], [tensor("w", (8,), kind=8)], "tensor w does not fill complete blocks"),
    "out of line": ([], [tensor("w", (8,), offset=8)], "tensor w does not fill complete blocks"),
    "too long": ([], [tensor("w", (65,))], r"truncated: \d+ bytes are declared"),
    "far too long": ([], [tensor("w", (2**62, 2**62))], "truncated: .* bytes are declared"),
    "beyond the end": ([], [tensor("w", (1,), offset=2**40)], "truncated: .* bytes are declared"),
    "the same name": (
        [],
        [tensor("w", (8,)), tensor("w", (8,), offset=32)],
        "tensor occurs twice",
    ),
    "overlap": ([], [tensor("v", (16,)), tensor("w", (8,), offset=32)], "tensors v and w overlap"),
    "the same place": ([], [tensor("v", (8,)), tensor("w", (8,))], "tensors v and w overlap"),
}


@pytest.mark.parametrize("name", LIES)
def test_headers_that_lie(tmp_path, name):
    parts, tensors, message = LIES[name]
    path = file(tmp_path, *parts, tensors=tensors)
    with pytest.raises(
        SettingError, match=rf"m\.gguf: broken or not a GGUF file: .*{message}.*; download"
    ):
        gguf_header.read(path)


@pytest.mark.parametrize("counts", [(2**60, 0), (0, 2**60), (9, 0), (0, 9)])
def test_counts_that_lie(tmp_path, counts):
    with pytest.raises(SettingError, match=r"m\.gguf: broken or not a GGUF file: "):
        gguf_header.read(file(tmp_path, counts=counts))


def test_neighbours_do_not_overlap(tmp_path):
    tensors = [tensor("b", (8,), offset=32), tensor("a", (8,))]
    assert gguf_header.read(file(tmp_path, setting("k", U64, bytes(8)), tensors=tensors)) == {
        "k": 0
    }


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=4),
    length=st.integers(0, 600),
)
def test_no_change_escapes_or_fills_the_memory(tmp_path_factory, changes, length):
    folder = tmp_path_factory.mktemp("fuzz")
    strings = array(STRING, 3, text("a") + text("bc") + text(""))
    path = file(
        folder,
        setting("general.architecture", STRING, text("llama")),
        setting("tokens", ARRAY, strings),
        setting("scores", ARRAY, array(U32, 4, bytes(16))),
        setting("general.alignment", U32, struct.pack("<I", 32)),
        tensors=[tensor("v", (16,)), tensor("w", (32, 2), kind=8, offset=64)],
    )
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content[: length or None])
    tracemalloc.start()
    with suppress(SettingError):
        gguf_header.read(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
