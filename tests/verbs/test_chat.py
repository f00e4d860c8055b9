"""What `culm chat` says of a model before the dialogue, and the questions of pipes."""

import io
import json
import sys

import pytest
from scripted import scripted
from tiny import model as tiny_model

from culm.cli import main
from culm.config import SettingError
from culm.text.language_model import LanguageModel
from culm.tokenizer.bytes import Bytes
from culm.verbs.chat import introduction


def introduced(*stages: str, template: bool = True) -> str:
    """The first line of a chat with a model of these stages."""
    model = tiny_model()
    model.trained_on = stages
    return introduction(LanguageModel(model, Bytes(specials=template).build()), "runs/my model")


def test_it_says_what_the_model_was_trained_on() -> None:
    assert introduced("plain text (books)", "dialogues (identity)") == (
        "runs/my model was trained on plain text (books), then on dialogues (identity); ask about "
        "these."
    )
    assert introduced() == ""  # of a model from elsewhere nothing is known


def test_a_base_model_continues_a_text() -> None:
    said = introduced("plain text (books)", "plain text (notes)")
    assert "is a base model: it was trained on plain text (books), then on plain text (n" in said
    assert "`culm generate 'runs/my model' TEXT`" in said


@pytest.mark.parametrize("stages", [(), ("plain text (books)",)])
def test_a_model_without_a_chat_template_is_refused(stages) -> None:
    with pytest.raises(SettingError, match=r"most likely a base model, .*culm generate 'runs/my"):
        introduced(*stages, template=False)


@pytest.fixture(scope="module")
def served():
    with scripted("Hello,\nyou!") as running:
        yield running


def piped(monkeypatch, question: str, *arguments: str) -> int:
    """The exit status of `culm chat` with a question on standard input."""
    monkeypatch.setattr(sys, "argv", ["culm", "chat", *arguments])
    monkeypatch.setattr(sys, "stdin", io.StringIO(question))
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_question_of_a_pipe_is_answered_and_nothing_else(monkeypatch, capsys, served) -> None:
    assert piped(monkeypatch, "Hi,\nyou?\n", served.url) == 0
    assert capsys.readouterr() == ("Hello,\nyou!\n", "")
    assert piped(monkeypatch, "Hi", f"{served.url}/v1#fixture", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["content"], said["model"]) == ("Hello,\nyou!", "fixture")


@pytest.mark.parametrize(
    ("question", "name", "words"),
    [
        (" \n", "", "there is no question"), ("x" * 40_000, "", "maximum context length"),
        ("hi", "#other", "other"), ("hi", "/nowhere", "HTTP 404"),
    ],
)  # fmt: skip
def test_failures_of_a_pipe_have_a_status(
    monkeypatch, capsys, served, question, name, words
) -> None:
    assert piped(monkeypatch, question, served.url + name) != 0
    out, error = capsys.readouterr()
    assert out == ""
    assert words in error
    assert "Traceback" not in error
