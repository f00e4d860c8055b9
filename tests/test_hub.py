"""A name on the Hugging Face hub: one sentence at once where there is no network."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler

import pytest
from huggingface_hub import constants
from stub_server import StubServer
from tiny import model

from culm import hub
from culm.config import SettingError
from culm.convert.load import load_adapter, load_model, load_pretrained
from culm.data.format.document import DocumentFormat
from culm.data.prepare import prepare
from culm.source import open_source
from culm.tokenizer.bytes import Bytes

OFFLINE = "the hub is not reachable: go online"


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a hub that does not answer: nobody listens there."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        number = reserved.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{number}")
        with suppress(ImportError):
            monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # datasets reads it when imported
        yield number


@contextmanager
def hub_that_answers(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str = ""
) -> Iterator[None]:
    """A hub that refuses every request. code: the header with the hub's own reason."""

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = StubServer(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()
    thread.join()


def datasets_of(name: str, setting: str = "data.path") -> list[dict]:
    """The records of a dataset on the hub."""
    pytest.importorskip("datasets")
    return list(open_source(name, setting=setting))


@pytest.mark.parametrize(
    "read",
    [
        load_model,
        load_pretrained,
        lambda name: load_adapter(model(), name),
        datasets_of,
        lambda name: datasets_of(f"{name}:part:test"),
    ],
    ids=["model", "start", "adapter", "dataset", "part"],
)
def test_without_a_network_it_is_said_at_once(port, read, capfd) -> None:
    started = time.perf_counter()
    with pytest.raises(SettingError, match=OFFLINE) as told:
        read("owner/nope")
    assert time.perf_counter() - started < 3
    assert "\n" not in str(told.value)
    assert "owner/nope" in str(told.value)
    assert "Retrying" not in "".join(capfd.readouterr())


def test_an_error_names_the_setting_of_its_dataset(port) -> None:
    with pytest.raises(SettingError, match=r"^eval\.path: 'owner/nope' is no file"):
        datasets_of("owner/nope", setting="eval.path")


def test_a_corpus_of_a_hub_without_a_network(port, tmp_path) -> None:
    """Its revision is asked for before its records, and must not hide the sentence."""
    source = open_source("owner/nope")
    assert source.revision is None
    assert open_source("owner/nope@v1").revision == "v1"
    pytest.importorskip("datasets")
    tokenizer = Bytes().build()
    with pytest.raises(SettingError, match=OFFLINE):
        prepare(source, DocumentFormat(), tokenizer, tmp_path / "corpus")
    assert not any(tmp_path.iterdir())


def test_a_hub_that_is_silent_is_given_up(port, monkeypatch) -> None:
    monkeypatch.setattr(hub, "SECONDS", (0.2, 0.2, 0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert hub.commit_of("owner/nope", "model") is None


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "RepoNotFound", "no such file or folder, and no public model of the hub; check"),
        (401, "", "no such file or folder, and no public model of the hub; check"),
        (403, "GatedRepo", "this model is gated: accept its terms on its page"),
        (404, "RevisionNotFound", "the hub has no such revision of it"),
        (400, "", "the hub refuses: "),
    ],
)
def test_what_a_hub_refuses(port, monkeypatch, status, code, words) -> None:
    with hub_that_answers(monkeypatch, status, code):
        with pytest.raises(SettingError, match=f"^owner/nope: {words}"):
            load_model("owner/nope")
        with pytest.raises(SettingError, match=r"^data\.path: owner/nope: "):
            datasets_of("owner/nope")


def test_a_name_that_no_hub_can_have(port) -> None:
    with pytest.raises(SettingError, match=r"^data\.path: own--er/nope: not the name of a dataset"):
        datasets_of("own--er/nope")
    with pytest.raises(SettingError, match=r"^own--er/nope: not the name of a model"):
        load_model("own--er/nope")


def test_a_hub_that_fails_is_not_reachable(port, monkeypatch) -> None:
    with hub_that_answers(monkeypatch, 503):
        assert hub.commit_of("owner/nope", "dataset") is None
