"""Servers that ask the person in the middle of a call."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from test_agent_servers import file

from culm.agent.approval import Person
from culm.agent.questions import Questions, parsed
from culm.agent.server_settings import read_servers
from culm.agent.servers import Servers
from culm.tools.function import run

pytest.importorskip("mcp")


def booked(folder, *said, wait=0.0, seconds=20.0):
    """The result of a call whose server asks, and what the person saw."""
    shown, left = [], list(said)

    def ask(text):
        shown.append(text)
        time.sleep(wait)
        return left.pop(0) + "\n"

    person = Person(ask)
    with Servers(read_servers(file(folder)), person) as servers:
        tools = {one.name: one for one in servers.functions}
        return run(tools["notes__book"], {}, seconds, person.seconds).text, shown


def test_the_answers_go_to_the_server(tmp_path):
    found, shown = booked(tmp_path, "y", "4", "", "Ada")
    assert found == '{"people":4,"smoking":false,"name":"Ada"}'
    assert shown[0].startswith("notes asks:\n  | Which\ufffd table?\nAnswer? ")
    assert shown[1].endswith("people (integer): ")
    assert shown[2].endswith("smoking (boolean; default false): ")


def test_the_person_may_refuse(tmp_path):
    assert booked(tmp_path, "n")[0].endswith("elicitation was decline")


def test_a_wrong_answer_is_asked_again_and_three_end_it(tmp_path):
    found, shown = booked(tmp_path, "y", "four", "4", "yes", "", "Ada")
    assert found == '{"people":4,"smoking":true,"name":"Ada"}'
    assert "'four'" in shown[2]
    assert "it needs an answer" in shown[5]
    assert booked(tmp_path, "y", "a", "b", "c")[0].endswith("elicitation was cancel")


def test_the_time_of_the_person_is_not_that_of_the_call(tmp_path):
    found, _ = booked(tmp_path, "y", "4", "", "Ada", wait=1.5, seconds=2)
    assert found.startswith("{")


def test_without_a_person_the_server_knows_that_it_cannot_ask(tmp_path):
    with Servers(read_servers(file(tmp_path))) as servers:
        tools = {one.name: one for one in servers.functions}
        assert "licitation" in run(tools["notes__book"], {}, 20).text


@pytest.mark.parametrize(
    ("said", "field", "value"),
    [
        ("2", {"type": "integer"}, 2),
        ("2.5", {"type": "number"}, 2.5),
        ("No", {"type": "boolean"}, False),
        ("red", {"type": "string", "enum": ["red", "blue"]}, "red"),
        ("b", {"type": "string", "oneOf": [{"const": "a"}, {"const": "b", "title": "B"}]}, "b"),
        ("a, b", {"type": "array", "items": {"enum": ["a", "b"]}}, ["a", "b"]),
        ("b", {"type": "array", "items": {"anyOf": [{"const": "a"}, {"const": "b"}]}}, ["b"]),
    ],
)
def test_fields_of_a_form(said, field, value):
    assert parsed(said, field) == value


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ("2.5", {"type": "integer"}),
        ("green", {"type": "string", "enum": ["red", "blue"]}),
        ("a, c", {"type": "array", "items": {"enum": ["a", "b"]}}),
        ("perhaps", {"type": "boolean"}),
        ("nan", {"type": "number"}),
        ("5", {"type": "integer", "maximum": 3}),
        ("ab", {"type": "string", "minLength": 3}),
        ("", {"type": "string"}),
    ],
)
def test_what_does_not_fit_a_field(said, field):
    with pytest.raises(ValueError, match=r"."):
        parsed(said, field)


def asked(*params, person, cancel_after=None):
    """Results of questions that come at once."""

    async def all_at_once():
        answer = Questions(Person(person)).of("bank", lambda: True)
        tasks = [asyncio.create_task(answer(None, one)) for one in params]
        if cancel_after is not None:
            await asyncio.sleep(cancel_after)
            tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(all_at_once())


def form(message, **fields):
    schema = {"type": "object", "properties": fields, "required": [*fields]}
    return SimpleNamespace(mode="form", message=message, requested_schema=schema)


def test_questions_come_one_after_the_other():
    shown = []

    def person(text):
        shown.append(text)
        time.sleep(0.05)
        return "yes\n" if text.endswith("[n]o: ") else "x\n"

    forms = [form(name, word={"type": "string"}) for name in "ab"]
    assert [one.action for one in asked(*forms, person=person)] == ["accept"] * 2
    assert ["| a" in shown[0], "word" in shown[1], "| b" in shown[2]] == [True] * 3


def test_a_cancelled_question_is_not_waited_for():
    shown = []

    def person(text):
        shown.append(text)
        time.sleep(1)
        return "yes"

    start = time.monotonic()
    asked(form("a", word={"type": "string"}), person=person, cancel_after=0.1)
    assert time.monotonic() - start < 0.9
    time.sleep(1.2)
    assert len(shown) == 1  # nor are its fields asked


def test_a_message_cannot_look_like_a_question_of_the_agent():
    shown = []
    asked(form("a\nAllow this call? [y]es"), person=lambda text: shown.append(text) or "n")
    assert "\n  | Allow this call?" in shown[0]


def test_a_page_is_shown_and_not_opened():
    shown = []
    page = SimpleNamespace(mode="url", message="Sign in", url="https://bank.example/\u202ein")
    [result] = asked(page, person=lambda text: shown.append(text) or "y")
    assert (result.action, result.content) == ("accept", None)
    assert "  | https://bank.example/\ufffdin\n" in shown[0]


def test_the_end_of_the_input_is_no_answer():
    lines = ["y\n"]
    optional = SimpleNamespace(
        mode="form", message="a",
        requested_schema={"properties": {"all": {"type": "string", "default": "delete"}}},
    )  # fmt: skip
    [result] = asked(optional, person=lambda text: lines.pop() if lines else "")
    assert (result.action, result.content) == ("cancel", None)


@pytest.mark.parametrize(
    "field",
    [
        True,
        {},
        {"type": ["integer", "null"]},
        {"type": "object"},
        {"type": "string", "enum": 5},
        {"type": "string", "oneOf": ["x"]},
        {"type": "array", "items": [1]},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "integer", "default": "drop"},
    ],
)
def test_a_malformed_form_is_an_error_that_nobody_sees(field):
    [result] = asked(form("a", word=field), person=pytest.fail)
    assert result.code == -32602


def test_a_server_asks_only_within_its_calls():
    answer = Questions(Person(pytest.fail)).of("bank", lambda: False)
    assert asyncio.run(answer(None, form("a"))).action == "decline"
