"""`s3://` and `hf://` against stand-ins on this machine that speak their HTTP."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from stub_server import StubServer

from culm.config import SettingError
from culm.data.format.document import DocumentFormat
from culm.data.manifest import Manifest
from culm.data.prepare import prepare
from culm.source import open_source
from culm.tokenizer.tokenizer import Tokenizer

fsspec = pytest.importorskip("fsspec")

COMMIT = "1" * 40
LINES = b'{"text": "first"}\n{"text": "second"}\n'


def parquet() -> bytes:
    """A table of 1000 rows."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    written = io.BytesIO()
    rows = [{"text": f"row {number}"} for number in range(1000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), written)
    return written.getvalue()


def files() -> dict[str, bytes]:
    return {"data/a.jsonl": LINES, "data/deep/b.parquet": parquet(), "other/c.txt": b"third"}


def check(root: str, tokenizer: Tokenizer, out: Path) -> Manifest:
    """Folders, files of each kind and the version of each, as of files on this machine."""
    source = open_source(f"{root}/data")
    texts = [record["text"] for record in source]
    assert texts == ["first", "second", *(f"row {number}" for number in range(1000))]
    assert next(iter(source)).place.endswith("data/a.jsonl: line 1")
    assert open_source(f"{root}/other/c.txt").size == 5
    assert [record["text"] for record in open_source(f"{root}/other/c.txt")] == ["third"]
    with pytest.raises(SettingError, match=r"none\.txt: .*no such file"):
        list(open_source(f"{root}/none.txt"))
    with pytest.raises(SettingError, match="there is no file or folder"):
        open_source(f"{root}/none")
    return prepare(open_source(f"{root}/data"), DocumentFormat(), tokenizer, out, 0)


@pytest.mark.slow
def test_s3(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    s3fs = pytest.importorskip("s3fs")
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "something", "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    try:
        s3fs.S3FileSystem.clear_instance_cache()
        system = fsspec.filesystem("s3")
        system.mkdir("texts")
        for name, content in files().items():
            system.pipe(f"texts/{name}", content)
        manifest = check("s3://texts", tokenizer, tmp_path / "out")
        assert "ETag" in manifest.revisions["s3://texts/data/a.jsonl"]
        with pytest.raises(SettingError, match=r"s3://nowhere/a\.txt: .*bucket does not exist"):
            list(open_source("s3://nowhere/a.txt"))
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


class Hub(StubServer):
    """The part of the hub's HTTP API by which files of a dataset are read."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.token: str | None = None  # that a private dataset asks for

    def entry(self, path: str) -> dict[str, Any] | None:
        if path in self.files:
            content = self.files[path]
            return {"type": "file", "path": path, "size": len(content), "oid": "2" * 40}
        if any(name.startswith(f"{path}/") for name in self.files):
            return {"type": "directory", "path": path, "size": 0, "oid": "3" * 40}
        return None

    def tree(self, folder: str, deep: bool) -> list[dict[str, Any]] | None:
        """What is below a folder."""
        inner = [name for name in self.files if name.startswith(f"{folder}/" if folder else "")]
        found = set(inner) if deep else set()
        for name in inner:
            parts = name.split("/")
            start = len(folder.split("/")) + 1 if folder else 1
            ends = range(start, len(parts) + 1 if deep else start + 1)
            found.update("/".join(parts[:end]) for end in ends)
        return [one for name in sorted(found) if (one := self.entry(name))] or None


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def refused(self) -> bool:
        """Whether who asks may not see the dataset; the hub says then that there is none."""
        wanted = self.server.token
        if wanted is None or self.headers.get("Authorization") == f"Bearer {wanted}":
            return False
        self.send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        return True

    def do_GET(self) -> None:
        if self.refused():
            return
        url = urlsplit(self.path)
        path, deep = unquote(url.path), "true" in parse_qs(url.query).get("recursive", [])
        base = "/api/datasets/owner/name"
        if path.startswith(f"{base}/tree/"):
            folder = path.removeprefix(f"{base}/tree/").partition("/")[2]
            self.give(self.server.tree(folder, deep))
        elif path.startswith(base) and "/paths-info" not in path:
            self.give({"id": "owner/name", "sha": COMMIT, "siblings": []})
        elif path.startswith("/datasets/owner/name/resolve/"):
            name = path.removeprefix("/datasets/owner/name/resolve/").partition("/")[2]
            self.give_bytes(self.server.files.get(name))
        else:
            self.give(None)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.refused():
            return
        given = json.loads(body) if body.startswith("{") else parse_qs(body)
        self.give([one for path in given["paths"] if (one := self.server.entry(path))])

    def give(self, found: Any) -> None:
        if found is None:
            self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            self.send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def give_bytes(self, content: bytes | None) -> None:
        if content is None:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        first, last = 0, len(content) - 1
        wanted = self.headers.get("Range")
        if wanted:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(last, int(end or last))
        facts = {
            "ETag": '"4"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes",
            "Content-Range": f"bytes {first}-{last}/{len(content)}",
        }  # fmt: skip
        self.send(206 if wanted else 200, content[first : last + 1], facts)

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import HfFileSystem, constants

    server = Hub(files())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    HfFileSystem.clear_instance_cache()
    yield server
    HfFileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()
    thread.join()


def test_files_of_the_hub(hub: Hub, tokenizer: Tokenizer, tmp_path: Path) -> None:
    manifest = check("hf://datasets/owner/name", tokenizer, tmp_path / "out")
    [name] = [name for name in manifest.revisions if name.endswith("a.jsonl")]
    assert manifest.revisions[name].startswith(f"{len(LINES)} bytes, ")


def test_a_private_dataset_needs_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of HF_TOKEN, or of `hf auth login`."""
    from huggingface_hub import HfFileSystem

    hub.token, place = "hf_of_a_test", "hf://datasets/owner/name/data/a.jsonl"
    for token, given in (("hf_of_another", False), ("hf_of_a_test", True)):
        monkeypatch.setenv("HF_TOKEN", token)
        HfFileSystem.clear_instance_cache()
        if given:
            assert [record["text"] for record in open_source(place)] == ["first", "second"]
        else:
            with pytest.raises(SettingError, match=r"data\.path|owner/name"):
                list(open_source(place))
