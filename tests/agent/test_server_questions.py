"""Servers that ask the person in the middle of a call."""

import time

import pytest
from test_agent_servers import file

from culm.agent.questions import parsed
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
        return left.pop(0)

    with Servers(read_servers(file(folder)), ask) as servers:
        tools = {one.name: one for one in servers.functions}
        return run(tools["notes__book"], {}, seconds).text, shown


def test_the_answers_go_to_the_server(tmp_path):
    found, shown = booked(tmp_path, "y", "4", "", "Ada")
    assert found == '{"people":4,"smoking":false,"name":"Ada"}'
    assert shown[0].startswith("notes asks: Which\ufffd table?")
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
    found, _ = booked(tmp_path, "y", "4", "", "Ada", wait=0.6, seconds=1.5)
    assert found.startswith("{")


def test_without_a_person_the_server_is_told_so(tmp_path):
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
        ("", {"type": "string"}),
    ],
)
def test_what_does_not_fit_a_field(said, field):
    with pytest.raises(ValueError, match=r"."):
        parsed(said, field)
