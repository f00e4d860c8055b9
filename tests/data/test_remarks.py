"""What a corpus left out, and what became of its files, is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from culm.config import SettingError, parse
from culm.data.format.document import DocumentFormat
from culm.data.loader import Loader
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.data.settings import DataConfig
from culm.eval.report import write_report
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.source import open_source
from culm.source.record import Record, fields_of
from culm.tokenizer.tokenizer import Tokenizer

U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}


def test_equal_records_can_be_kept(prepared: Any) -> None:
    lines = [{"text": "a"}] * 3 + [{"text": "b"}]
    manifest, texts = prepared(lines, DocumentFormat())
    assert (len(texts), manifest.dropped) == (2, 2)
    assert manifest.remarks == [
        "2 records are duplicates and dropped; data.duplicates=keep keeps them."
    ]
    manifest, texts = prepared(lines, DocumentFormat(), duplicates="keep")
    assert (len(texts), manifest.dropped) == (4, 0)


def test_marks_between_documents(tmp_path: Path, prepared: Any) -> None:
    stories = [f"Story {n}.\n\nIt ends." for n in range(30)]
    text = "\n<|endoftext|>\n".join(stories)
    path = tmp_path / "stories.txt"
    path.write_text(text)
    data = parse(DataConfig, {"path": str(path), "separator": "<|endoftext|>"})
    assert [record["text"] for record in data.open()] == stories
    manifest, _ = prepared([{"text": text}], DocumentFormat())
    [remark] = manifest.remarks
    assert remark.startswith("1 documents contain <|endoftext|> as text; data.separator=")


def test_files_that_are_not_read_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("a.txt", "b.docx", "c.png", "d.xml", "e.docx"):
        (folder / name).write_text(f"text of {name}")
    manifest = prepare(open_source(folder), DocumentFormat(), tokenizer, tmp_path / "d", held_out=0)
    [(phrase, count)] = manifest.notes.items()
    assert count == 4
    assert "(.docx, .png, .xml)" in phrase
    for start in (b"%PDF-1.7\n", b"PK\x03\x04"):
        (folder / "a.txt").write_bytes(start + b"some text")
        with pytest.raises(SettingError, match="not text but a document of another program"):
            list(open_source(folder / "a.txt", invalid="replace"))


def test_the_share_that_is_held_out_is_reported(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Of three short documents one is held out; of three long ones a part is."""
    for folder, words, wanted in (("short", 900, True), ("long", 90_000, False)):
        (tmp_path / folder).mkdir()
        for n in range(3):
            (tmp_path / folder / f"{n}.txt").write_text("words " * (words + n))
        source = open_source(tmp_path / folder)
        out = tmp_path / f"{folder}-data"
        manifest = prepare(source, DocumentFormat(), tokenizer, out, held_out=0.02)
        said = "% of the bytes are held out, by data.held_out=0.02"
        assert any(said in remark for remark in manifest.remarks) == wanted
        assert manifest.held_out_share == pytest.approx(1 / 3 if wanted else 0.02, abs=0.003)


def test_text_that_changed_since_it_was_prepared(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(f"text of {name}")
    source = open_source([tmp_path / name for name in ("a.txt", "b.txt", "c.txt")])
    prepare(source, DocumentFormat(), tokenizer, tmp_path / "data", held_out=0)
    rows = Loader(Prepared.open(tmp_path / "data"), 16, 1, 1, seed=0)
    assert rows.remarks == []
    (tmp_path / "a.txt").unlink()  # it is not needed any more
    assert rows.remarks == []
    (tmp_path / "b.txt").write_text("other text")
    (tmp_path / "c.txt").write_text("text of d.txt")
    [remark] = rows.remarks
    assert remark == (
        f"{tmp_path / 'data'} was prepared from other text: {tmp_path / 'b.txt'} had 13 bytes then "
        "and has 10 now, and 1 other files changed."
    )


def test_a_record_knows_what_was_read() -> None:
    record = Record({"a": 1, "b": 2, "c": None, "d": [3]}, "x: line 1")
    assert record["a"] == 1
    assert record.unread == {"b", "d"}
    assert fields_of(record) == {"a": 1, "b": 2, "c": None, "d": [3]}
    assert record.unread == {"b", "d"}
    assert record.get("b") == 2
    assert "d" in record
    assert not record.unread


def test_a_run_says_what_it_left_out(
    stage: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "chat.jsonl", tmp_path / "run"
    lines = [{"messages": [{**U, "content": f"Hi {n}"}, A], "id": n + 1} for n in range(20)]
    path.write_text("\n".join(map(json.dumps, [*lines, lines[0], {"nothing": 1}])))
    settings = {**stage("sft", steps=2), "folder": str(folder)}
    settings["data"] = {"path": str(path), "format": "chat", "held_out": 0, "invalid": "skip"}
    results = train(parse(RunConfig, settings)).results
    wanted = [
        "1 records cannot be read and are left out.",
        "21 records have the key 'id', which is not used.",
        "1 records are duplicates and dropped; data.duplicates=keep keeps them.",
    ]
    assert sorted(results["data"]) == sorted(wanted)
    spoken = capsys.readouterr().err
    assert all(remark in spoken for remark in wanted)
    write_report(folder)
    assert all(f"- {remark}" in (folder / "report.md").read_text() for remark in wanted)
