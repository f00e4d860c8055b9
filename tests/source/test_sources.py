"""Records from files of every kind, and clear errors for what cannot be read."""

import codecs
import gzip
import json
import tracemalloc
from types import SimpleNamespace

import pytest

from culm.config import SettingError
from culm.data.format.document import DocumentFormat
from culm.data.manifest import Manifest
from culm.data.prepare import prepare
from culm.source import Chain, open_source
from culm.source.source import LeftOutOnly, found_in
from culm.source.text import LONGEST


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts_of(path, **options):
    return [record["text"] for record in open_source(path, **options)]


def test_a_folder_is_read_in_order(tmp_path):
    write(tmp_path / "b.txt", "second")
    write(tmp_path / "a" / "x.md", "\ufefffirst")
    write(tmp_path / "c.jsonl", '{"text": "third"}\n\n"fourth"\n')
    write(tmp_path / "d.json", '\ufeff[{"text": "fifth"}]')
    write(tmp_path / "e.jsonl.gz", gzip.compress(b'{"text": "sixth"}'))
    write(tmp_path / "f.bin", b"\xff")
    write(tmp_path / "g.txt", " \n")
    assert texts_of(tmp_path) == ["first", "second", "third", "fourth", "fifth", "sixth"]
    several = open_source([tmp_path / "b.txt", tmp_path / "a"])
    assert isinstance(several, Chain)
    assert [record["text"] for record in several] == ["second", "first"]
    assert [record["text"] for record in several] == ["second", "first"]  # again each time


def test_folders_of_culm_are_not_a_corpus(tmp_path):
    write(tmp_path / "a.txt", "mine")
    write(tmp_path / "runs" / "x" / "run.yaml", "seed: 0")
    write(tmp_path / "runs" / "x" / "eval.jsonl", '{"step": 1}')
    write(tmp_path / "quick" / "quickstart.json", "{}")
    write(tmp_path / "words" / "tokenizer.json", "{}")
    write(tmp_path / ".git" / "b.txt", "hidden")
    assert texts_of(tmp_path) == ["mine"]


def test_an_object_may_fill_several_lines(tmp_path):
    write(tmp_path / "a.json", json.dumps({"text": "one"}, indent=2))
    assert texts_of(tmp_path) == ["one"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        ("text".encode("utf-32"), "UTF-32 text; save it as UTF-8"),
        (codecs.BOM_UTF32_BE + "text".encode("utf-32-be"), "UTF-32 text; save it as UTF-8"),
        (b"GIF\x00\xff", "zero bytes"),
    ],
)
def test_errors_say_where_a_file_is_not_utf8(content, message, tmp_path):
    with pytest.raises(SettingError, match=rf"a\.txt: .*{message}"):
        list(open_source(write(tmp_path / "a.txt", content)))


def test_a_text_file_is_split_as_asked(tmp_path):
    path = write(tmp_path / "a.txt", "one\ntwo\n\n  \nthree\r\n\r\n\r\nfour\n")
    assert texts_of(path, split="paragraphs") == ["one\ntwo", "three", "four"]
    assert texts_of(path, split="lines") == ["one", "two", "three", "four"]
    assert texts_of(path) == ["one\ntwo\n\n  \nthree\r\n\r\n\r\nfour\n"]


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    content = "é".encode() * 600_000 + b"\xff tail"  # beyond the first block, which cuts an é
    path = write(tmp_path / "a.txt", b"x" + content)
    with pytest.raises(SettingError, match=r"a\.txt: line 1: byte 1,200,001 is not UTF-8; save"):
        list(open_source(path))
    assert texts_of(path, invalid="replace")[0].endswith("é\ufffd tail")
    assert texts_of(path, invalid="skip")[0].endswith("é tail")
    unfinished = write(tmp_path / "b.txt", b"ab\xe2\x82")
    with pytest.raises(SettingError, match=r"b\.txt: line 1: byte 2 is not UTF-8"):
        list(open_source(unfinished))
    lines = write(tmp_path / "c.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(SettingError, match=r"c\.jsonl: line 2: byte 24 is not UTF-8"):
        list(open_source(lines))
    assert texts_of(lines, invalid="replace") == ["a", "\ufffd"]
    good, bad = open_source(lines, invalid="skip")  # the record, and not the byte
    assert good["text"] == "a"
    assert not good.error
    assert "c.jsonl: line 2: byte 24 is not UTF-8" in bad.error


@pytest.mark.parametrize("invalid", ["error", "replace"])
def test_a_long_line_streams_in_bounded_memory(tmp_path, invalid):
    size = 6 * LONGEST
    path = write(tmp_path / "a.txt", "word " * (size // 5))
    tracemalloc.start()
    sizes = [len(record["text"]) for record in open_source(path, invalid=invalid)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) == path.stat().st_size
    assert max(sizes) <= LONGEST
    assert peak < size, "the whole line was held"


def test_damaged_files_are_named(tmp_path):
    cases = {
        "a.jsonl": (b'{"text": 1}\n{oops\n', r"a\.jsonl: line 2: not readable as JSON"),
        "b.jsonl": (b"3\n", r"b\.jsonl: line 1: expected an object, found a number"),
        "c.json": (b"[1]", r"c\.json: line 1: expected an object"),
        "d.json": (b"[", r"d\.json: line 1: not readable as JSON"),
        "e.txt.gz": (gzip.compress(b"text" * 100)[:-9], r"e\.txt\.gz: cannot be read"),
        "f.jsonl.gz": (b"not gzip", r"f\.jsonl\.gz: cannot be read"),
        "g.parquet": (b"PAR1", r"g\.parquet: cannot be read as parquet"),
    }
    for name, (content, message) in cases.items():
        path = write(tmp_path / name, content)
        with pytest.raises(SettingError, match=message):
            list(found_in(open_source(path), lambda record: iter([record]), LeftOutOnly()))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(SettingError, match=r"there is no file or folder 'nothing\.txt'"):
        open_source("nothing.txt")
    with pytest.raises(SettingError, match="there is no file or folder 'nothing'"):
        open_source("nothing")
    with pytest.raises(SettingError, match="no file in it is one of"):
        open_source(tmp_path)


def test_parquet_and_a_dataset_folder(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"text": f"row {n}", "n": n} for n in range(1000)]
    folder = tmp_path / "fineweb"
    folder.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "part.parquet", row_group_size=64)
    assert list(open_source(folder)) == rows

    pytest.importorskip("datasets")
    from culm.source.hub import Hub

    assert list(Hub(str(folder))) == rows


def test_a_dataset_that_the_hub_does_not_give(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*names, **options):
        assert names == ("no/such", "part")
        assert options == {"split": "test", "streaming": True, "revision": None}
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        SettingError,
        match=r"'no/such:part:test' is no file or folder here, .*: no route; check the name",
    ):
        list(open_source("no/such:part:test"))


def test_the_revision_of_a_dataset_is_recorded_and_read_each_time(monkeypatch, tokenizer, tmp_path):
    datasets = pytest.importorskip("datasets")
    read = []

    class Hub:
        def repo_info(self, name, repo_type, revision, timeout):
            assert (name, repo_type) == ("some/texts", "dataset")
            return SimpleNamespace(sha={"v1": "a" * 40, None: "b" * 40}[revision])

    def load(*names, revision, **options):
        read.append(revision)
        return [{"text": "one"}, {"text": "two"}]

    monkeypatch.setattr("culm.hub.HfApi", Hub)
    monkeypatch.setattr(datasets, "load_dataset", load)
    (tmp_path / "more.txt").write_text("three")
    for name, revision in (("some/texts", "b" * 40), ("some/texts@v1:part", "a" * 40)):
        source = open_source([name, tmp_path / "more.txt"] if "@" not in name else name)
        assert next(record.place for record in source) == f"{name}: record 1"
        folder = tmp_path / str(len(read))
        prepare(source, DocumentFormat(), tokenizer, folder, held_out=0)
        assert Manifest.read(folder).revisions == {name: revision}
        assert read[-2:] == [revision, revision]


def test_the_standard_library_is_a_corpus():
    source = open_source("stdlib")
    names = [path.as_posix() for path in source.paths]
    assert len(names) > 300
    assert any(name.endswith("/json/decoder.py") for name in names)
    assert not [n for n in names if "/test/" in n or "site-packages" in n or "/idlelib/" in n]
    assert next(iter(source))["text"].strip()
    assert names == [path.as_posix() for path in open_source("stdlib").paths]


def test_a_string_with_half_a_surrogate_pair_is_read(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "a\ud800"}))
    assert tokenizer.decode(tokenizer.encode(texts_of(path)[0])) == "a\ufffd"


@pytest.mark.parametrize(("written", "read"), [
    ('"a\\ud800"', "a\ufffd"), ('"\\uDC00b"', "\ufffdb"), ('["\\ud83d", {"k": "\\udfff"}]',
    ["\ufffd", {"k": "\ufffd"}]), ('"\\ud83d\\ude42"', "\U0001f642"), (r'"\\ud800"', r"\ud800"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_half_a_surrogate_pair_is_replaced_where_it_is_read(tmp_path, name, written, read):
    """What computes a digest or the bytes of a text, as fill-in-the-middle does, would fail."""
    path = write(tmp_path / name, f'{{"x": {written}}}\n')
    assert [record["x"] for record in open_source(str(path))] == [read]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


KINDS = "txt jsonl json parquet txt.gz txt.bz2 txt.zst csv html pdf xml"


@pytest.mark.parametrize("name", [*(f"a.{kind}" for kind in KINDS.split()), "a"])
def test_a_pointer_of_git_lfs_is_no_text(name, tmp_path):
    for library in ("pyarrow", "zstandard", "selectolax", "pypdf", "wikitextparser"):
        pytest.importorskip(library)
    path = write(tmp_path / name, POINTER)
    for given in (path, tmp_path) if path.suffix else (path,):
        with pytest.raises(SettingError, match=rf"{name}: a pointer of Git LFS .* git lfs pull"):
            list(open_source(given))
