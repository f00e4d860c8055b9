"""Files with a URL, of every kind, by fsspec."""

import bz2
import http.server
import threading
from functools import partial

import pytest
from stub_server import StubServer

from culm.config import SettingError
from culm.data.format.document import DocumentFormat
from culm.data.manifest import Manifest
from culm.data.prepare import prepare
from culm.source import open_source

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def texts_of(path, **options):
    return [record["text"] for record in open_source(path, **options)]


def test_a_folder_and_a_file(memory):
    memory.pipe("/corpus/b.txt", b"second")
    memory.pipe("/corpus/a/x.jsonl.bz2", bz2.compress(b'{"text": "first"}\n'))
    memory.pipe("/corpus/.git/x.txt", b"hidden")
    memory.pipe("/corpus/picture.png", b"\x89PNG")
    memory.pipe("/corpus/runs/x/run.yaml", b"seed: 0")
    memory.pipe("/corpus/runs/x/eval.jsonl", b'{"step": 1}')
    source = open_source("memory://corpus")
    assert [record["text"] for record in source] == ["first", "second"]
    assert [record.place for record in source][1] == "memory:///corpus/b.txt: line 1"
    [phrase] = source.left_out
    assert "(.png)" in phrase
    assert texts_of("memory://corpus/b.txt") == ["second"]
    assert open_source("memory://corpus/b.txt").size == 6
    assert texts_of(["memory://corpus/b.txt", "memory://corpus/a"]) == ["second", "first"]


def test_what_is_read_from_its_end(memory, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"text": f"row {n}"} for n in range(1000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    memory.pipe("/a.parquet", (tmp_path / "a.parquet").read_bytes())
    assert texts_of("memory://a.parquet") == [f"row {n}" for n in range(1000)]
    memory.pipe("/b.parquet", b"PAR1 damaged")
    with pytest.raises(SettingError, match=r"memory://b\.parquet: cannot be read as parquet"):
        texts_of("memory://b.parquet")


def test_the_manifest_says_what_was_read(memory, tokenizer, tmp_path):
    memory.pipe("/a.txt", b"some words")
    prepare(open_source("memory://a.txt"), DocumentFormat(), tokenizer, tmp_path / "d", held_out=0)
    manifest = Manifest.read(tmp_path / "d")
    assert manifest.origin == {}
    assert manifest.revisions["memory://a.txt"].startswith("10 bytes, created 20")


def test_what_is_not_reached_is_named_and_never_skipped(memory, monkeypatch):
    for url, message in [
        ("memory://nothing", "there is no file or folder 'memory://nothing'"),
        ("memory://nothing.txt", r"memory://nothing\.txt: cannot be read: .*; check the URL"),
        ("klingon://a.txt", "Protocol not known: klingon"),
    ]:
        with pytest.raises(SettingError, match=rf"data\.path: .*{message}"):
            list(open_source(url, invalid="skip"))
    memory.pipe("/a.txt", b"word " * 1000)
    monkeypatch.setattr(type(memory.open("/a.txt")), "read", lost)
    with pytest.raises(SettingError, match=r"memory://a\.txt: cannot be read: line is dead; check"):
        list(open_source("memory://a.txt", invalid="skip"))


def lost(file, size):
    raise RuntimeError("line is dead")


def test_a_library_that_is_missing_names_the_extra(monkeypatch):
    def refuse(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    with pytest.raises(SettingError, match=r"s3://b/a\.txt: .* 'culm\[remote\]' .*s3fs"):
        list(open_source("s3://b/a.txt"))


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_a_web_page(tmp_path):
    pytest.importorskip("aiohttp")
    pytest.importorskip("selectolax")
    (tmp_path / "a.html").write_text("<p>from the web</p>")
    (tmp_path / "b.jsonl.bz2").write_bytes(bz2.compress(b'{"text": "a line"}\n'))
    server = StubServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        assert texts_of(f"{address}/a.html") == ["from the web"]
        assert texts_of(f"{address}/b.jsonl.bz2?download=true") == ["a line"]
        assert "Last-Modified" in open_source(f"{address}/a.html").paths[0].version
        with pytest.raises(SettingError, match="there is no file or folder 'http"):
            open_source(f"{address}/nothing")
    finally:
        server.shutdown()
        server.server_close()
