"""Which calls a person is asked about."""

import io
import os
import sys
import threading
from functools import partial

import pytest
from steps import Reciter, Tool, calls

from culm.agent import approval
from culm.agent.answer import ModelAnswer
from culm.agent.approval import Approvals, Person, rules_of, terminal
from culm.agent.loop import Agent, Budget
from culm.config import SettingError

DONE = ModelAnswer("done", tokens=1)


def answered(asked, said, text):
    asked.append(text)
    return said


def made(answers, approvals, tool=None, name="web_search", text="x\x1b[2J"):
    """How often a tool ran for each answer of a person, and what the model read."""
    tool = tool or Tool(name, str)
    model = Reciter([*[calls((name, {"text": f"{text}{n}"})) for n in range(answers)], DONE])
    outcome = Agent(model, [tool], approvals, Budget(seconds=5)).ask("go")
    read = [m["content"] for m in model.asked[-1][0] if m["role"] == "tool"]
    return len(tool.ran), read, outcome


def test_tools_without_effects_need_no_approval_and_others_do():
    assert made(1, Approvals(), name="search")[0] == 1
    ran, (read,), _ = made(1, Approvals())
    assert ran == 0
    assert "no terminal" in read


def test_a_person_says_yes_no_or_always():
    shown = []
    for said, ran in [("y\n", 2), ("n\n", 0), ("", 0), ("yes!\n", 0), ("A\n", 2)]:
        asked = []
        answer = partial(answered, asked, said)
        count, read, _ = made(2, Approvals(person=Person(answer)))
        assert count == ran
        assert len(asked) == (1 if said == "A\n" else 2)
        assert ran or read[0] == "error: the person refused this call"
        shown += asked
    assert all("\x1b" not in text for text in shown)
    assert "web_search" in shown[0]
    assert '"text"' in shown[0]


def test_rules_by_name_the_last_that_fits_counts():
    rules = rules_of(["never", "files__*=ask", "files__read=auto"])
    approvals = Approvals(rules)
    names = ("files__read", "files__write", "python")
    assert [approvals.policy(name) for name in names] == ["auto", "ask", "never"]
    assert made(1, Approvals(rules_of(["web_*=auto"])))[0] == 1
    for wrong in ("web=yes", "", "web"):
        with pytest.raises(SettingError, match="approve"):
            rules_of([wrong])


def test_what_must_not_be_called_is_not_shown():
    tool = Tool("web_search", str)
    model = Reciter([calls(("web_search", {"text": ""})), DONE])
    Agent(model, [tool], Approvals([("*", "never")])).ask("go")
    assert model.asked[0][1] == []
    assert "there is no tool" in model.asked[1][0][-1]["content"]
    assert not tool.ran


def test_the_time_of_a_person_is_no_time_of_the_budget(monkeypatch):
    import time

    approvals = Approvals(person=Person(lambda text: time.sleep(0.6) or "y"))
    tool = Tool("web_search", str)
    model = Reciter([calls(("web_search", {"text": ""})), DONE])
    outcome = Agent(model, [tool], approvals, Budget(seconds=0.5)).ask("go")
    assert (outcome.ended, len(tool.ran)) == ("answer", 1)


def test_without_a_terminal_there_is_nobody_to_ask(monkeypatch):
    monkeypatch.setattr(approval.sys, "stdin", io.StringIO("y\n"))
    assert terminal() is None
    monkeypatch.setattr(approval.sys, "stdin", None)
    assert terminal() is None


@pytest.mark.skipif(sys.platform == "win32", reason="terminals")
def test_what_was_typed_before_a_question_is_no_answer():
    """Not UTF-8, either."""
    keyboard, screen = os.openpty()
    os.write(keyboard, b"y\ny\n")
    typed = threading.Timer(0.2, os.write, (keyboard, b"caf\xe9\n"))
    typed.start()
    assert approval._line(screen) == "caf\ufffd\n"
    typed.join()
    for one in (keyboard, screen):
        os.close(one)
