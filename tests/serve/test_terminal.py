"""The chat at the terminal: its commands, its models, what it lets through."""

import io
import json
import os
import re
import select
import stat
import string
import sys
import time
from contextlib import contextmanager

import pytest
from reciter import TEXT, Running, reciter
from rich.console import Console
from scripted import scripted

from culm.config import SettingError
from culm.endpoint import Endpoint, EndpointError, endpoint_at
from culm.serve.terminal.lines import read_question
from culm.serve.terminal.models import ChatSettings, LoadedModel, ServedModel
from culm.serve.terminal.terminal import Terminal
from culm.text.message import Delta


@pytest.fixture(scope="module")
def model():
    return reciter()


class Scripted:
    """Says one text after the other, and keeps what it was asked; an exception is raised."""

    name, known = "one", ("one", "two")

    def __init__(self, *answers) -> None:
        self._answers, self.asked, self.settings = list(answers), [], []

    def names(self):
        return list(self.known)

    def choose(self, name):
        self.name = name

    def answer(self, messages, settings):
        self.asked.append([f"{one['role']}: {one['content']}" for one in messages])
        self.settings.append(settings)
        for piece in self._answers.pop(0):
            if isinstance(piece, BaseException):
                raise piece
            yield piece if isinstance(piece, Delta) else Delta(piece)

    def used(self, messages):
        return len(messages), 1024


def talk(model, lines, settings=ChatSettings(), terminal=False, **more) -> str:
    """What is shown to someone who types these lines, an exception standing for its key."""
    out, typed = io.StringIO(), iter([*lines, EOFError()])

    def read(prompt: str, already: str) -> str:
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return already + line

    console = Console(file=out, width=500, highlight=False, force_terminal=terminal)
    Terminal(model, settings, console=console, read=read, **more).run()
    return out.getvalue()


# -- dialogues


def test_a_dialogue(model):
    shown = talk(LoadedModel(model, "reciter"), ["hi", "", "again", "/quit", "never read"])
    assert shown.count(TEXT) == 2


def test_answers_stop_at_max_tokens(model):
    shown = talk(LoadedModel(model, "reciter"), ["hi", "/set max_tokens none", "hi"],
                 ChatSettings(max_tokens=5))  # fmt: skip
    assert shown.count(TEXT[:5]) == 2
    assert shown.count(TEXT) == 1


def test_the_end_of_the_context_is_reported(model):
    shown = talk(LoadedModel(model, "reciter"), ["x" * 3000, "hi"])
    assert "/new starts a new dialogue" in shown
    assert TEXT in shown


def test_ctrl_c_stops_the_answer_and_keeps_it():
    model = Scripted(["one ", KeyboardInterrupt()], ["two"])
    shown = talk(model, ["count", "go on"], system="Be brief.")
    assert "one  (stopped)" in shown
    assert model.asked[1] == ["system: Be brief.", "user: count", "assistant: one ", "user: go on"]


def test_a_second_ctrl_c_ends_the_chat():
    stopped = ["one ", KeyboardInterrupt()]
    model = Scripted(stopped, ["never"])
    talk(model, ["count", KeyboardInterrupt(), "never asked"])
    assert len(model.asked) == 1
    model = Scripted(["one"], ["two"])
    shown = talk(model, [KeyboardInterrupt(), "a", KeyboardInterrupt(), "b"])
    assert len(model.asked) == 2
    assert "Ctrl-C again or /quit ends the chat." in shown


def test_a_question_that_failed_is_no_turn():
    model = Scripted(["half", EndpointError("It broke off.")], ["whole"])
    shown = talk(model, ["first", "second"])
    assert "It broke off." in shown
    assert model.asked[1] == ["user: second"]


def test_reasoning_is_dim_and_not_sent_again():
    said = [Delta(reasoning="hm"), Delta("42")]
    model = Scripted(said, ["43"])
    shown = talk(model, ["a", "b"], terminal=True)
    assert re.search(r"\x1b\[2mhm.*42", shown, re.DOTALL)
    assert model.asked[1] == ["user: a", "assistant: 42", "user: b"]
    assert "hm" not in talk(Scripted(said), ["a"])  # a pipe gets the answer alone


def test_questions_of_several_lines():
    lines = iter(['"""a', "  b", 'c"""', "one\\", "two", '"""x"""', "plain", '""'])
    questions = [read_question(lambda *_: next(lines)) for _ in range(5)]
    assert questions == ["a\n  b\nc", "one\ntwo", "x", "plain", '""']


# -- commands


def test_help_names_every_command():
    terminal = Terminal(Scripted())
    shown = talk(Scripted(), ["/help", "/fly"])
    assert all(f"/{name}" in shown for name in terminal._commands)
    assert "no command /fly" in shown


def test_a_question_may_start_with_a_slash():
    model = Scripted(["a folder"])
    talk(model, [" /etc is what?"])
    assert model.asked == [["user: /etc is what?"]]


def test_retry_edit_undo_and_new():
    model = Scripted(["1"], ["2"], ["3"], ["4"], ["5"])
    shown = talk(model, ["/retry", "a", "/retry", "/edit", "b", "/undo", "c", "/new", "d"])
    assert "There is no question yet." in shown
    assert "Took back: ab" in shown
    assert model.asked == [["user: a"], ["user: a"], ["user: ab"], ["user: c"], ["user: d"]]


def test_an_edit_can_be_left():
    model = Scripted(["1"], ["2"])
    talk(model, ["a", "/edit", KeyboardInterrupt(), "b"])
    assert model.asked[1] == ["user: a", "assistant: 1", "user: b"]


def test_settings_change_with_set():
    model = Scripted(["1"], ["2"])
    lines = ["/set temperature 0.3", "/set seed 7", "a", "b", "/set top_p 3", "/set flavor 1"]
    shown = talk(model, [*lines, "/set seed"])
    assert [(one.temperature, one.seed) for one in model.settings] == [(0.3, 8), (0.3, 9)]
    assert "set.top_p" in shown
    assert "flavor" in shown
    assert "give a value too" in shown


def test_system_prompts_and_models_and_tokens():
    model = Scripted(["1"], ["2"])
    lines = ["/system", "/system Be kind.", "a", '/system ""', "b"]
    shown = talk(model, [*lines, "/model", "/model two", "/model three", "/tokens"])
    assert "There is no system prompt." in shown
    assert model.asked == [["system: Be kind.", "user: a"], ["user: a", "assistant: 1", "user: b"]]
    assert "* one\n  two" in shown
    assert "  one\n* two" in shown
    assert "no model three; there are: one, two" in shown
    assert "4 of 1,024 tokens of context" in shown


def test_dialogues_are_saved_and_loaded(tmp_path):
    path = tmp_path / "chat.json"
    model = Scripted(["1"], ["2"], ["3"])
    other = tmp_path / "other.json"
    other.write_text("{}")
    lines = ["/save", "/system Be kind.", "a", f"/save {path}", "b", "/save", "/new"]
    lines += [f"/save {other}", f"/load {other}", f"/load {tmp_path}/none", f"/load {path}", "c"]
    shown = talk(model, lines)
    assert "give the file a name" in shown
    assert "give the file another name" in shown
    assert "holds no messages" in shown
    assert "No such file" in shown
    assert other.read_text() == "{}"
    saved = json.loads(path.read_text())["messages"]
    assert [one["role"] for one in saved] == ["system", "user", "assistant", "user", "assistant"]
    assert model.asked[2] == ["system: Be kind.", "user: a", "assistant: 1", "user: b",
                              "assistant: 2", "user: c"]  # fmt: skip


# -- what it lets through


CONTROLS = [
    "\x1b[2J", "\x1b]0;title\x07", "\x1b]52;c;cm0gLXJm\x07", "\x9b31m", "\x9d52;c;aa\x9c",
    "\x1bP+q\x1b\\", "\r", "\x08", "\x7f", "\x00", "\x0e", "\x0c", "\u202e", "\u2066", "\u200b",
    "\u200f", "\ufeff", "\U000e0041", "\u2028", "\x85",
]  # fmt: skip


@pytest.mark.parametrize("control", CONTROLS)
def test_models_cannot_control_the_terminal(control):
    """In answers, in reasoning, in errors, in files and in names."""

    said = [f"a{control[:1]}", f"{control[1:]}b", Delta(reasoning=f"r{control}")]
    model = Scripted(said, [ValueError(f"e{control}")])
    model.known = ["one", f"n{control}"]
    shown = talk(model, ["x", "y", "/model"], system=f"s{control}")
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200f\u2028\u202e\u2066\ufeff\U000e0041]", shown
    )
    left = "".join(one for one in control if one in string.printable[:95])
    assert f"a{left}b" in shown


def test_answers_are_shown_as_they_are():
    """No markup, no emoji codes, no spaces for tabs, joined emoji and Persian as they are."""
    text = "[bold]x[/bold] :smile: d[:key:]\n\tif \\x: 👩‍💻 می‌خواهم"
    assert text in talk(Scripted([text]), ["x"])
    assert "?" in talk(Scripted(["half \ud800 pair"]), ["x"])


# -- pipes and JSON


def test_json_is_one_object_per_answer(capsys):
    console = Console(width=500)
    typed = iter(["a", "b", EOFError()])

    def read(prompt, already):
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    model = Scripted(["1\x1b", Delta(reasoning="hm")], ["2"])
    Terminal(model, console=console, read=read, as_json=True).run()
    out, person = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert (first["content"], first["reasoning_content"], first["model"]) == ("1\x1b", "hm", "one")
    assert second["role"] == "assistant"
    assert "\x1b" not in out
    assert "/help" in person


def test_a_pipe_gets_the_answer_alone():
    out = io.StringIO()
    Terminal(Scripted(["42"]), console=Console(file=out)).ask_once("17 + 25?")
    assert out.getvalue() == "42\n"


# -- models of a server


@pytest.fixture(scope="module")
def served():
    with scripted({"when": "think", "say": "<think>hm</think>\n\n42"}, "Hello!") as running:
        yield running


def test_a_model_of_a_server(served):
    model = ServedModel(endpoint_at(served.url, 20, None))
    shown = talk(model, ["/tokens", "hi", "/tokens", "/model", "/set temperature 9"])
    assert "0 of 32,768 tokens" in shown
    assert "Hello!" in shown
    assert re.search(r"\d\d of 32,768 tokens", shown)
    assert "* fixture" in shown
    deltas = list(model.answer([{"role": "user", "content": "think"}], ChatSettings()))
    assert "".join(one.reasoning for one in deltas) == "hm"
    assert "".join(one.content for one in deltas) == "42"


def test_errors_of_a_server_are_words(served):
    unknown = ServedModel(Endpoint(f"{served.url}/v1", "other", 20, 0))
    assert "other" in talk(unknown, ["hi"])
    long = talk(ServedModel(endpoint_at(served.url, 20, None)), ["x" * 40_000])
    assert "maximum context length" in long
    locked = Running(api_key="secret")
    with pytest.raises(SettingError, match="HTTP 401"):
        endpoint_at(locked.url, 20, "wrong")
    assert endpoint_at(locked.url, 20, "secret").model == "reciter"
    locked.stop()


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "broke off"),
        (b'data: {"choices": []}\n\n', "broke off"),
        (b"data: [DONE]\n\n", "did not end its answer"),
        (b'data: {"error": {"message": "It failed."}}\n\n', "It failed."),
        (b"data: what\n\n", "not a JSON object"),
    ],
)
def test_streams_without_their_end_are_errors(monkeypatch, sent, words):
    @contextmanager
    def opened(self, name, body):
        yield io.BytesIO(sent)

    monkeypatch.setattr(Endpoint, "_opened", opened)
    model = ServedModel(Endpoint("http://here/v1", "m", 1, 0))
    with pytest.raises(EndpointError, match=words):
        list(model.answer([], ChatSettings()))


# -- a real terminal

CHILD = """
import io, sys
from rich.console import Console
sys.path[:0] = {paths!r}
from test_terminal import Scripted
from culm.serve.terminal.terminal import Terminal
model = Scripted(["said"], ["more"])
Terminal(model).run()
print("asked", model.asked)
"""


def test_pasted_lines_are_one_question_and_the_history_is_private(tmp_path):
    """In a pseudo-terminal, with the line editor of this Python."""
    pytest.importorskip("readline")
    pty = pytest.importorskip("pty")
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(XDG_STATE_HOME=str(tmp_path), TERM="xterm")
        os.execv(sys.executable, [sys.executable, "-c", CHILD.format(paths=sys.path)])
    waited(terminal, "> ")
    os.write(terminal, b"\x1b[200~first\nsecond\x1b[201~\r")
    waited(terminal, "> ")
    os.write(terminal, b"\x04")
    shown = waited(terminal, "]]")
    os.waitpid(child, 0)
    assert "'user: first\\nsecond'" in shown
    history = tmp_path / "culm" / "chat_history"
    assert "second" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def waited(terminal: int, words: str, seconds: float = 60) -> str:
    """What a terminal shows until these words are there."""
    found, end = "", time.monotonic() + seconds
    while words not in found:
        assert time.monotonic() < end, found
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                found += os.read(terminal, 4096).decode(errors="replace")
            except OSError:  # the program on it ended
                raise AssertionError(found) from None
    return found
