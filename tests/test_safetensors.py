"""Files of tensors: what the library writes is read, and what lies is refused in a sentence."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from culm.config import SettingError
from culm.safetensors import (
    KINDS,
    read_metadata,
    read_safetensors,
    stream_safetensors,
    write_safetensors,
)

HELD = {
    "a": torch.arange(12.0).view(3, 4),
    "b": torch.arange(6, dtype=torch.int8),
    "c": torch.ones(2, 2, dtype=torch.bfloat16),
    "scalar": torch.tensor(7.5),
    "empty": torch.ones(0, 5),
}


@pytest.fixture
def path(tmp_path) -> Path:
    save_file(HELD, tmp_path / "x.safetensors", metadata={"format": "pt", "word": "ü"})
    return tmp_path / "x.safetensors"


def same(these, those):
    assert these.keys() == those.keys()
    for name, tensor in these.items():
        assert tensor.dtype == those[name].dtype
        assert torch.equal(tensor, those[name])


def test_what_the_library_writes_is_read(path):
    same(dict(read_safetensors(path)), HELD)
    assert read_metadata(path) == {"format": "pt", "word": "ü"}


def test_every_dtype_goes_through_the_library(tmp_path):
    held = {code: torch.zeros(3, 2).to(dtype) for code, dtype in KINDS.items()}
    save_file(held, tmp_path / "x")
    assert {n: t.dtype for n, t in read_safetensors(tmp_path / "x")} == KINDS


def test_what_is_streamed_is_read_by_the_library(tmp_path):
    shapes = {name: tensor.shape for name, tensor in HELD.items()}
    stream_safetensors(tmp_path / "x", shapes, iter(HELD.items()))
    same(load_file(tmp_path / "x"), HELD)
    same(dict(read_safetensors(tmp_path / "x")), HELD)


def test_the_same_tensors_and_metadata_are_the_same_bytes(path):
    """Files with the same weights have the same digest; the library shuffles the metadata."""
    metadata = {name: "é\n" + name for name in "abcdefgh"}
    found = set()
    for _ in range(6):
        write_safetensors(path, {"x": torch.arange(3), "y": torch.ones(2, 2)}, metadata)
        found.add(path.read_bytes())
    assert len(found) == 1
    assert read_metadata(path) == {"format": "pt", **metadata}
    assert load_file(path)["x"].tolist() == [0, 1, 2]


def written(path: Path, change=None, data: bytes | None = None, raw: bytes | None = None) -> None:
    """The file with another header, or other data."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if change:
        change(header)
    text = raw if raw is not None else json.dumps(header).encode()
    rest = content[8 + length :] if data is None else data
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)


def entry(name, **values):
    return lambda header: header[name].update(values)


ONE = b'"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}'


@pytest.mark.parametrize(
    ("change", "data", "raw", "words"),
    [
        (entry("a", data_offsets=[0, 1 << 40]), None, None, "truncated: a is announced at bytes 0"),
        (entry("a", data_offsets=[48, 0]), None, None, "truncated: a is announced"),
        (entry("a", data_offsets=[-48, 0]), None, None, "a has a shape or data_offsets that are"),
        (entry("a", data_offsets=[0.0, 48]), None, None, "that are no counts"),
        (entry("a", shape=[True, 12]), None, None, "that are no counts"),
        (entry("a", shape=[1 << 62, 1 << 62]), None, None, "a has 48 bytes, its shape"),
        (entry("empty", shape=[0, 1 << 64]), None, None, "empty has 0 bytes"),
        (entry("a", dtype="F64"), None, None, r"a has 48 bytes, its shape \[3, 4\] needs 96"),
        (entry("a", dtype="F4"), None, None, "a is of the dtype 'F4', which is not read here"),
        (entry("a", dtype=["F32"]), None, None, "which is not read here"),
        (lambda h: h.update(a2=h["a"]), None, None, "a and a2 overlap"),
        (lambda h: h.pop("a"), None, None, "leave a gap|belong to no tensor"),
        (lambda h: h.update(a=5), None, None, "a has no dtype, shape and data_offsets"),
        (lambda h: h.update(__metadata__={"n": 3}), None, None, "holds something other than texts"),
        (None, b"", None, "truncated"),
        (None, bytes(500), None, "bytes after .* belong to no tensor"),
        (None, b"1", b"{" + ONE + b"," + ONE + b"}", "a is there twice"),
        (None, None, b"[]", "its header is no mapping"),
        (None, None, b"{", "Expecting property name"),
        (None, None, b"\xff\xfe", "codec can't decode byte"),
        (None, None, b"[" * 200_000, "recursion"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(path, change, data, raw, words):
    written(path, change, data, raw)
    with pytest.raises(SettingError, match=rf"x\.safetensors: broken .*({words}).*; copy it again"):
        list(read_safetensors(path))


@pytest.mark.parametrize("content", [b"", b"abc", (1 << 63).to_bytes(8, "little") + b"{}"])
def test_a_file_of_something_else(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(SettingError, match="truncated: a header of"):
        read_metadata(tmp_path / "x")
    with pytest.raises(SettingError, match="there is no such file; copy the whole folder again"):
        read_metadata(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans(),
    header=st.booleans(),
)  # fmt: skip
@example(place=0.0, byte=255, cut=False, header=True)
def test_a_mutated_file_is_read_as_the_library_reads_it_or_refused(
    tmp_path_factory, place, byte, cut, header
):
    """Nothing but our sentence is raised, and nothing is read that the library refuses."""
    path = tmp_path_factory.mktemp("fuzz") / "x"
    save_file(HELD, path, metadata={"format": "pt"})
    content = bytearray(path.read_bytes())
    length = 8 + int.from_bytes(content[:8], "little") if header else len(content)
    at = int(place * length)
    if cut:
        del content[at:]
    else:
        content[at] = byte
    path.write_bytes(content)
    try:
        ours = dict(read_safetensors(path))
    except SettingError:
        return
    theirs = load_file(path)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert tensor.shape == theirs[name].shape
        mine, other = (t.reshape(-1).view(torch.uint8) for t in (tensor, theirs[name]))
        assert torch.equal(mine, other)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 65) | st.text(max_size=4) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*KINDS, "F4", "x"]) | values,
        "shape": st.lists(st.integers(0, 4), max_size=3) | values,
        "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | values,
    }
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), entries | values),
    size=st.integers(0, 40),
)
def test_any_header_is_read_or_refused(tmp_path_factory, header, size):
    path = tmp_path_factory.mktemp("fuzz") / "x"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    try:
        tensors = dict(read_safetensors(path))
    except SettingError:
        return
    assert sum(tensor.nbytes for tensor in tensors.values()) == size
