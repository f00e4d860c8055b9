"""A server in the form of the Hugging Face hub, for uploads."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import huggingface_hub.constants
import pytest
from stub_server import StubServer

REPO = "somebody/tiny"


class Hub(StubServer):
    """The part of the hub's HTTP API that a push asks: repositories, branches, tags, commits."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}  # by branch
        self.tags: dict[str, str] = {}
        self.commits: dict[str, tuple[str, str]] = {}  # branch and message
        self.private: bool | None = None
        self.status, self.delay = 200, 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, method: str, path: str, body: bytes) -> Any:
        base = f"/api/models/{REPO}"
        match method, path.partition("?")[0].removeprefix(base).strip("/").split("/"):
            case "POST", ["api", "repos", "create"]:
                asked = json.loads(body)  # the library has sent either
                self.private = asked.get("private", asked.get("visibility") == "private")
                self.files.setdefault("main", {})
                return {"url": f"{self.url}/{REPO}", "name": REPO, "id": REPO}
            case "POST", ["branch", name]:
                self.files[name] = dict(self.files["main"])
                return {}
            case "POST", ["preupload", _]:
                files = json.loads(body)["files"]
                modes = {"uploadMode": "regular", "shouldIgnore": False}
                return {"files": [{"path": file["path"], **modes} for file in files]}
            case "POST", ["commit", name]:
                return self.commit(name, [json.loads(line) for line in body.splitlines()])
            case "POST", ["tag", revision]:
                self.tags[json.loads(body)["tag"]] = revision
                return {}
            case "POST", ["api", "validate-yaml"]:  # of the card
                return {"errors": [], "warnings": []}
            case "GET", ["refs"]:
                tags = [
                    {"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit}
                    for name, commit in self.tags.items()
                ]
                return {"branches": [], "converts": [], "tags": tags}
            case "GET", ["tree", name]:
                return [
                    {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                    for path, content in self.files[name].items()
                ]
            case "GET", _:
                return {"id": REPO, "sha": "0" * 40, "siblings": []}
        raise AssertionError((method, path))

    def commit(self, branch: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                self.files[branch][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.files[branch][value["path"]]
        number = f"{len(self.commits) + 1:040d}"
        self.commits[number] = (branch, message)
        return {"commitUrl": f"{self.url}/{REPO}/commit/{number}", "commitOid": number,
                "success": True}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        time.sleep(self.server.delay)
        answer: Any = {}
        status = self.server.status
        if status == 200:
            answer = self.server.answer(self.command, self.path, body)
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        yield server
        server.shutdown()
