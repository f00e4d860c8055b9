"""`culm tokenize encode`, `decode` and `compare`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from culm.cli import app
from culm.config import SettingError
from culm.tokenizer.tokenizer import Tokenizer

TEXT = "The fox\r\n  said: 東京 🙂\n\n<|end|>"


def tokenize(*words: object, input: bytes = b"") -> Result:
    return CliRunner().invoke(app, ["tokenize", *map(str, words)], input=input)


def error(*words: object, input: bytes = b"") -> str:
    found = tokenize(*words, input=input)
    assert isinstance(found.exception, SettingError), found.output
    return str(found.exception)


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tokenizer.save(tmp_path / "words")
    return tmp_path / "words"


def test_ids_and_text_again(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = tokenize("encode", folder, input=TEXT.encode()).stdout
    assert list(map(int, ids.split())) == tokenizer.encode(TEXT)
    assert ids.count("\n") == 1
    assert tokenize("decode", folder, input=ids.encode()).stdout_bytes == TEXT.encode()
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    listed = tokenize("encode", folder, tmp_path / "a.txt", tmp_path / "a.txt", "--json").stdout
    assert list(map(json.loads, listed.splitlines())) == [tokenizer.encode(TEXT)] * 2
    (tmp_path / "ids.txt").write_text(ids)
    assert tokenize("decode", folder, tmp_path / "ids.txt").stdout_bytes == TEXT.encode()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_lines_come_back(lines: list[str]) -> None:
    text = "".join(line.replace("\n", "") + "\n" for line in lines).encode()
    for more in ([], ["--json"]):
        ids = tokenize("encode", "bytes", "--lines", *more, input=text).stdout_bytes
        assert tokenize("decode", "bytes", "--lines", input=ids).stdout_bytes == text


def test_names_of_special_tokens(folder: Path, tokenizer: Tokenizer) -> None:
    end = str(tokenizer.end_of_turn)
    assert tokenize("encode", folder, "--specials", input=b"<|end|>").stdout.split() == [end]
    assert tokenize("decode", folder, input=end.encode()).stdout == ""
    assert tokenize("decode", folder, "--specials", input=end.encode()).stdout == "<|end|>"


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("tokenizers/gpt2", "15496 995"),
        ("tokenizers/gpt2/tokenizer.json", "15496 995"),
        pytest.param("tokenizers/cl100k_base.tiktoken", "9906 1917", marks=pytest.mark.slow),
        ("tokenizers/mistral/tokenizer.model.v1", "22557 1526"),
        pytest.param(
            "tokenizers/llama.cpp/ggml-vocab-gpt-2.gguf", "15496 995", marks=pytest.mark.slow
        ),
    ],
)
def test_files_of_all_kinds(name: str, ids: str, shared: Callable[[str], Path]) -> None:
    if ".model" in name:
        pytest.importorskip("sentencepiece")
    found = tokenize("encode", shared(name), input=b"Hello world")
    assert found.stdout.strip() == ids


def test_compare(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("the quick brown fox")
    (tmp_path / "fr.jsonl").write_text('{"text": "Où est-ce?"}\n{"text": "à Москва"}\n')
    words = ("compare", folder, "bytes", "--text", tmp_path / "en.txt")
    words = (*words, "--text", f"French={tmp_path}/fr.jsonl", "--text", f"French={tmp_path}/en.txt")
    found = json.loads(tokenize(*words, "--json").stdout)
    assert [(one["text"], one["tokenizer"]) for one in found] == [
        (text, kind) for text in (f"{tmp_path}/en.txt", "French") for kind in (str(folder), "bytes")
    ]
    english, _, ours, theirs = found
    ids = len(tokenizer.encode("the quick brown fox"))
    assert (english["bytes"], english["words"], english["tokens"]) == (19, 4, ids)
    assert english["bytes_per_token"] == 19 / ids
    assert english["tokens_per_word"] == ids / 4
    assert (theirs["texts"], theirs["bytes_per_token"], theirs["unlike"]) == (3, 1.0, 0)
    assert theirs["bytes"] == ours["bytes"] == theirs["tokens"] == 19 + 11 + 15
    shown = tokenize(*words).stdout
    assert "bytes/token" in shown
    assert f"{19 / ids:.3f}" in shown


def test_text_that_is_not_given_back_is_counted(
    shared: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("sentencepiece")
    (tmp_path / "a.txt").write_text("two  spaces")
    words = ("compare", shared("tokenizers/torchtune/m.model"), "--text", tmp_path / "a.txt")
    assert json.loads(tokenize(*words, "--json").stdout)[0]["unlike"] == 1
    assert "1 of 1" in tokenize(*words).stdout


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    assert "none: there is no such tokenizer; known: a folder" in error("encode", "none")
    assert "none.gguf: there is no such tokenizer" in error("encode", "none.gguf")
    (tmp_path / "a.pdf").write_text("%PDF")
    assert "a.pdf: not a tokenizer; known" in error("encode", tmp_path / "a.pdf")
    assert "standard input: byte 1 is not UTF-8" in error("encode", folder, input=b"a\xff")
    assert "b.txt: cannot be read" in error("encode", folder, tmp_path / "b.txt")
    assert "standard input: not a list of ids" in error("decode", folder, input=b"1 x")
    assert "standard input: an id is a whole number" in error("decode", folder, input=b"[1.5]")
    wrong = error("decode", folder, "--lines", input=b"1 2\n3 9999\n")
    assert wrong == "standard input: line 2: token id 9999 is not in the vocabulary of 350"


def test_the_earlier_form_says_what_to_write() -> None:
    found = tokenize("books/", "--out", "x")
    assert found.exit_code == 2
    assert "`culm tokenize train books/` trains" in " ".join(found.output.split()).replace("│ ", "")


def test_settings_of_the_tokenizer(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words 1234 and 1234\n" * 200)
    out = ("--out", tmp_path / "out", "--overwrite")
    found = tokenize("train", text, "tokenizer.digits=grouped", "--vocabulary", "300", *out)
    assert found.exit_code == 0, found.output
    loaded = Tokenizer.load(tmp_path / "out")
    assert b"123" in map(loaded.bytes_of, loaded.encode("1234"))
    found = tokenize("train", text, "tokenizer.reserved=3", "tokenizer.specials=[<x>]", *out)
    assert list(Tokenizer.load(tmp_path / "out").specials)[-4:] == [
        "<x>", "<|reserved_0|>", "<|reserved_1|>", "<|reserved_2|>",
    ]  # fmt: skip
    for setting, problem in (
        ("tokenizer=bytes", "tokenizer.kind: bytes is not trained"),
        ("tokenizer.pattern=gtp2", "tokenizer.pattern: 'gtp2' is not the name of a pattern; did"),
        ("tokenizer.pattern='(a'", "tokenizer.pattern: not a regular expression"),
        ("tokenizer.specials=[<|end|>]", "tokenizer.specials: '<|end|>' is there already"),
        ("tokenizer.vocabulary=258", "tokenizer.vocabulary: it should be at least 262"),
        ("train.steps=3", "train: only settings of the data or the tokenizer apply here"),
    ):
        assert problem in error("train", text, setting, *out), setting
    both = error("train", text, "tokenizer.vocabulary=400", "--vocabulary", "400", *out)
    assert "tokenizer.vocabulary: given twice" in both


def test_sentencepiece_writes_its_own_file(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text.txt").write_text("some words and others\n" * 100)
    words = ("train", tmp_path / "text.txt", "tokenizer=sentencepiece", "--vocabulary", "300")
    assert tokenize(*words, "--out", tmp_path / "out").exit_code == 0
    theirs = sentencepiece.SentencePieceProcessor(str(tmp_path / "out" / "tokenizer.model"))
    ours = Tokenizer.load(tmp_path / "out")
    assert theirs.encode("other words 12") == ours.encode("other words 12")
