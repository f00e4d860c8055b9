"""`culm agent` with a model behind a URL: the official protocol, end to end by the command line."""

import json
import sys
import time

import pytest
from scripted import scripted

from culm.agent.answer import ModelFailed
from culm.agent.api import APIChat
from culm.agent.loop import Agent, Budget
from culm.cli import main
from culm.endpoint import Endpoint
from culm.tools.python import PythonFunction

pytest.importorskip("pydantic_monty")
pytest.importorskip("mcp")
ASK = [{"role": "user", "content": "go"}]


def call(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def culm(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["culm", "agent", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return (ended.value.code or 0, *capsys.readouterr())


def test_a_question_with_three_tools(tmp_path, monkeypatch, capsys):
    (tmp_path / "town.txt").write_text("Rome has 3 rivers.")
    servers = tmp_path / "servers.json"
    with scripted(
        {"when": "^user: ", "say": "Let me see.\n" + call("search", query="rivers of Rome")},
        {"when": "^tool: town.txt", "say": call("python", code="3 * 7") + call("models__chat")},
        {"when": "^tool: error: .*messages", "say": "It is \x1b21."},
    ) as server:
        url = {"url": f"{server.url}/mcp"}
        servers.write_text(json.dumps({"mcpServers": {"models": url}}))
        code, out, err = culm(
            monkeypatch, capsys, f"{server.url}/v1", "How many?", "--tools", "python,search",
            "--folder", tmp_path, "--mcp", servers, "--approve", "models__*=auto",
            "--trace", tmp_path / "trace.jsonl",
        )  # fmt: skip
    assert (code, out) == (0, "It is \ufffd21.\n"), err
    assert "[1] Let me see.\n" in err
    assert '[2] python {"code": "3 * 7"}\n    -> 21\n' in err
    lines = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert [line.get("name") for line in lines if line["kind"] == "call"] == [
        "search", "python", "models__chat",
    ]  # fmt: skip
    assert len(lines[0]["tools"]) == 9
    assert (tmp_path / "servers.pins.json").exists()


def test_a_call_that_cannot_be_read_is_no_answer(monkeypatch, capsys):
    with scripted(
        {"when": "^tool: error: this is no call that can be read", "say": "I see."},
        {"when": "^user: ", "say": "So:\n<tool_call>python(</tool_call>"},
    ) as server:
        asked = f"{server.url}/v1", "go"
        code, out, err = culm(monkeypatch, capsys, *asked, "--tools", "python")
        assert (code, out) == (0, "I see.\n"), err
        assert "[1] So:" in err
        _, out, _ = culm(monkeypatch, capsys, *asked)  # no tools, no calls
        assert out.startswith("So:\n<tool_call>")


def test_a_budget_that_ends_is_an_error_without_an_answer(monkeypatch, capsys):
    with scripted("\x1b[2JI try." + call("python", code="1")) as server:
        code, out, err = culm(
            monkeypatch, capsys, f"{server.url}/v1#fixture", "go", "--tools", "python",
            "--steps", 2,
        )  # fmt: skip
    assert (code, out) == (1, "")
    assert "2 steps were not enough; allow more with --steps" in err
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tools", "shell"], "not one of python, sql, search, web"),
        (["--tools", "sql"], "needs --database"),
        (["--folder", "."], "--tools search"),
        (["--tools", "python", "--approve", "x"], "approve"),
        (["--mcp", "/none"], "cannot be read"),
        ([], "cannot be reached"),
    ],
)
def test_what_cannot_be_used_is_said(monkeypatch, capsys, arguments, said):
    code, out, err = culm(monkeypatch, capsys, "http://127.0.0.1:9/v1", "go", *arguments)
    assert (code, out) == (1, "")
    assert said in err


def test_a_server_that_is_slow_or_refuses(tmp_path):
    with scripted("word " * 100, seconds_per_token=0.05) as server:
        chat = APIChat(Endpoint(f"{server.url}/v1", "fixture", 5, 0))
        start = time.monotonic()
        outcome = Agent(chat, [PythonFunction()], budget=Budget(seconds=0.5)).ask("go")
        assert outcome.ended == "seconds"
        assert time.monotonic() - start < 4
        wrong = APIChat(Endpoint(f"{server.url}/v1", "nothing", 5, 0))
        with pytest.raises(ModelFailed, match="404"):
            wrong.answer(ASK, (), 5, 5)
        cut = chat.answer(ASK, (), 3, 5)
        assert (cut.content, cut.complete, cut.tokens) == ("wor", False, 3)
