"""`culm tokenize train` and `culm prepare` take the settings of the data that a run takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from culm.config import SettingError
from culm.data.manifest import Manifest
from culm.tokenizer.tokenizer import Tokenizer
from culm.verbs.corpus import corpus_of
from culm.verbs.prepare import prepare_corpus
from culm.verbs.tokenize import train_tokenizer

BAD = "data.invalid=skip"
RECORDS = '{"body": "some words to learn"}\n{"body": 3}\n{"body": "and other words"}\n'


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text(RECORDS)
    (tmp_path / "texts" / "b.docx").write_text("PK")
    return str(tmp_path / "texts")


def prepare(given: list[str], tmp_path: Path) -> Manifest:
    out, words = tmp_path / "corpus", str(tmp_path / "words")
    prepare_corpus(given, words, str(out), "document", "file", held_out=0, seed=0)
    return Manifest.read(out)


def test_what_an_error_advises_can_be_given(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, field = str(tmp_path / "words"), "data.format.text=body"
    with pytest.raises(SettingError, match=r"line 1: no text in .*data\.format\.text=FIELD"):
        train_tokenizer([folder], words, 300)
    with pytest.raises(SettingError, match=r"line 2: .*data\.invalid=skip"):
        train_tokenizer([folder, field], words, 300)
    train_tokenizer([folder, field, BAD], words, 300)
    said = capsys.readouterr().out
    assert "1 records cannot be read and are left out." in said
    assert "1 files in " in said
    assert "(.docx)" in said
    with pytest.raises(SettingError, match=r"line 2: .*data\.invalid=skip"):
        prepare([folder, field], tmp_path)
    manifest = prepare([folder, field, BAD], tmp_path)
    assert manifest.documents == 2
    assert manifest.notes["records cannot be read and are left out"] == 1


def test_settings_are_not_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b.txt").write_text("text")
    assert corpus_of(["a=b.txt", "x.txt"]).path == ("a=b.txt", "x.txt")
    assert corpus_of(["data.path=[a,b]"], held_out=0.1).path == ("a", "b")
    assert corpus_of(["x", "data.held_out=0.2"], held_out=0.1).held_out == 0.2
    with pytest.raises(SettingError, match="train: only settings of the data apply here"):
        corpus_of(["x", "train.steps=3"])
    with pytest.raises(SettingError, match=r"data\.invlid: no such setting; did you mean"):
        corpus_of(["x", "data.invlid=skip"])
    with pytest.raises(SettingError, match=r"data\.invalid: given twice"):
        corpus_of(["x", BAD, "data.invalid=error"])


def test_prepare_shows_what_it_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: Tokenizer
) -> None:
    tokenizer.save(tmp_path / "words")
    lines = [f'{{"prompt": "question {n}", "completion": "answer {n}"}}' for n in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    given, words = [str(tmp_path / "a.jsonl")], str(tmp_path / "words")
    prepare_corpus(given, words, str(tmp_path / "out"), None, "file", held_out=0, seed=0)
    out, shown = capsys.readouterr()
    assert Manifest.read(tmp_path / "out").format == "chat"
    assert "read as 1 json." in shown
    assert "The format is chat" in shown
    assert "«answer 4" in shown
    assert "answer 5" not in shown
    assert "9 documents" in out
    prepare_corpus(
        given, words, str(tmp_path / "again"), None, "file", held_out=0, seed=0, quiet=True
    )
    assert "answer" not in capsys.readouterr().err
    assert Manifest.read(tmp_path / "again").splits == Manifest.read(tmp_path / "out").splits
    with pytest.raises(SettingError, match="already exists"):
        prepare_corpus(given, words, str(tmp_path / "again"), None, "file", held_out=0, seed=0)
