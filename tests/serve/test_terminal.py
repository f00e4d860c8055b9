import io

import pytest
from reciter import TEXT, reciter
from rich.console import Console

from culm.config import SettingError
from culm.serve.terminal import Terminal
from culm.text.language_model import LanguageModel
from culm.tokenizer.bytes import Bytes


@pytest.fixture(scope="module")
def model():
    return reciter()


def talk(model, lines, **settings) -> str:
    """What is shown to someone who types these lines, an exception standing for its key."""
    out, typed = io.StringIO(), iter([*lines, EOFError()])

    def read() -> str:
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    console = Console(file=out, width=500, highlight=False)
    Terminal(model, temperature=0, console=console, read=read, **settings).run()
    return out.getvalue()


def test_a_model_without_a_template_is_refused_at_once(model):
    plain = LanguageModel(model.model, Bytes().build())
    with pytest.raises(SettingError, match="no chat template"):
        talk(plain, [])


def test_answers_stop_at_max_tokens(model):
    assert TEXT not in talk(model, ["hi"], max_tokens=5)


def test_a_dialogue(model):
    shown = talk(model, ["hi", "", "again", "/exit", "never read"])
    assert shown.count(TEXT) == 2


def test_commands(model):
    shown = talk(model, ["/help", "/reset", "/fly", KeyboardInterrupt()])
    for words in ("Ctrl-C interrupts", "Started a new dialogue", "no command /fly", "/exit ends"):
        assert words in shown


def test_ctrl_c_stops_the_answer_and_keeps_it(model, monkeypatch):
    asked = []

    def stream(messages, *_, **__):
        asked.append([dict(message) for message in messages])
        yield "one "
        if len(asked) == 1:
            raise KeyboardInterrupt
        yield "two"

    monkeypatch.setattr(model, "chat_stream", stream)
    shown = talk(model, ["count", "go on"], system="Be brief.")
    assert "one  (stopped)" in shown
    assert "one two" in shown
    assert [message["content"] for message in asked[1]] == ["Be brief.", "count", "one ", "go on"]


def test_the_end_of_the_context_is_reported(model):
    shown = talk(model, ["x" * 3000, "hi"])
    assert "/reset starts a new one" in shown
    assert TEXT in shown


def test_models_cannot_control_the_terminal(model, monkeypatch):
    monkeypatch.setattr(model, "chat_stream", lambda *_, **__: iter(["\x1b[2Jhi\x07\r", "\n!"]))
    assert "[2Jhi\n!" in talk(model, ["hello"])
