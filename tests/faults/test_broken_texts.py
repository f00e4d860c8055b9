"""Text that is broken in every way at once, a worker that dies, and an export that is killed."""

import gzip
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from stages import bytes_in

from culm.config import SettingError, parse
from culm.convert import hf
from culm.data.manifest import Manifest
from culm.data.prepare import prepare
from culm.data.settings import DataConfig
from culm.tokenizer.tokenizer import Tokenizer

LONG = 2_000_000  # bytes of one document


def broken(folder: Path) -> Path:
    """Each file has a good line, and something else."""
    folder.mkdir()
    good = json.dumps({"text": "a good line of words"}).encode() + b"\n"
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "not_utf8.jsonl").write_bytes(good + b'{"text": "\xff\xfe broken"}\n')
    (folder / "nul.jsonl").write_bytes(good + json.dumps({"text": "a\0b"}).encode() + b"\n")
    (folder / "surrogate.jsonl").write_bytes(good + b'{"text": "half \\ud800 of a pair"}\n')
    (folder / "short.jsonl").write_bytes(
        good + b"".join(json.dumps({"text": c}).encode() + b"\n" for c in "abcdefgh")
    )
    (folder / "long.jsonl").write_bytes(
        good + json.dumps({"text": "long words " * (LONG // 11)}).encode() + b"\n"
    )
    (folder / "types.jsonl").write_bytes(good + b'{"text": 7}\n{"other": "x"}\nnot json\n')
    packed = gzip.compress(good * 50)
    (folder / "cut.jsonl.gz").write_bytes(packed[: len(packed) - 12])
    return folder


def prepared(folder: Path, tokenizer: Tokenizer, out: Path, invalid: str = "error") -> Manifest:
    data = parse(DataConfig, {"path": str(folder), "invalid": invalid})
    return prepare(
        data.open(), data.format, tokenizer, out, 0, duplicates="keep", invalid=data.invalid
    )


def test_what_is_broken_is_refused_with_its_place(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"\.jsonl"):
        prepared(broken(tmp_path / "texts"), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_or_skipped_and_counted_and_each_time_the_same(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = broken(tmp_path / "texts")
    one = prepared(folder, tokenizer, tmp_path / "one", invalid="skip")
    two = prepared(folder, tokenizer, tmp_path / "two", invalid="skip")
    assert bytes_in(tmp_path / "one") == bytes_in(tmp_path / "two")
    assert one == two
    assert one.documents >= 7 + 8 + 1  # the good lines, the short ones and the long one
    assert one.bytes > LONG
    assert any("skipped" in remark or "left out" in remark for remark in one.remarks)


def dies(*piece: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_work_at_once(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(50)))
    data = parse(DataConfig, {"path": str(file), "clean": ["unicode"], "workers": 2})
    monkeypatch.setattr("culm.data.workers._work", dies)
    out, began = tmp_path / "out", time.monotonic()
    with pytest.raises(SettingError, match=r"data\.workers: a process that cleans text ended"):
        prepare(data.open(), data.format, tokenizer, out, 0, cleaner=data.cleaner(out))
    assert time.monotonic() - began < 60
    assert not out.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_export_leaves_no_folder(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiny

    model = tiny.model().config.model_copy(update={"vocabulary": tokenizer.vocabulary}).build(0)
    child = os.fork()
    if child == 0:

        def die(*_: Any, **__: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr("culm.atomic._sync", die)  # all is written, and has no name yet
        hf.export(model, tokenizer, tmp_path / "hf")
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not (tmp_path / "hf").exists()
    assert list(tmp_path.glob(".hf.*.culm"))
    hf.export(model, tokenizer, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir() if path.name != "texts"] == ["hf"]
