"""Calls of functions: how a reply is read, and how it is compared with the right ones."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from culm.config import SettingError
from culm.rollout.environment import TaskEnvironment
from culm.task.call_match import all_match, argument_matches, matches
from culm.task.called import Call, Unreadable, calls_in
from culm.task.task import graded
from culm.task.tool_calls import ToolCalls, json_schema

F, G = Call("f", {"a": 1, "b": "x"}), Call("lib.g", {})
JSON_F = '{"name": "f", "arguments": {"a": 1, "b": "x"}}'
JSON_G = '{"name": "lib.g", "parameters": {}}'


@pytest.mark.parametrize(("reply", "found"), [
    (f"<tool_call>{JSON_F}</tool_call>", [F]),
    (f"I look.\n<tool_call>\n{JSON_F}\n</tool_call>\n<tool_call>{JSON_G}</tool_call>", [F, G]),
    (f"<tool_call>\n{JSON_F}", [F]),  # its end is a special token, or was cut
    (f"[TOOL_CALLS] [{JSON_F}, {JSON_G}]", [F, G]),
    ('[TOOL_CALLS]f[ARGS]{"a": 1, "b": "x"}[TOOL_CALLS]lib.g[ARGS]{}', [F, G]),
    ('f{"a": 1, "b": "x"}', [F]),
    (f"<|python_tag|>{JSON_F}; {JSON_G}", [F, G]),
    ("<|python_tag|>f(a=1, b='x')", [F]),
    ('{"name": "f", "parameters": {"a": 1, "b": "x"}}', [F]),
    (json.dumps({"function": {"name": "f", "arguments": '{"a": 1, "b": "x"}'}}), [F]),
    (f"Here:\n```json\n[{JSON_F}]\n```\nDone.", [F]),
    ("```python\nf(a=1, b='x')\n```", [F]),
    ("[f(a=1, b='x'), lib.g()]", [F, G]),
    ("f(a=1, b='x')\nlib.g()", [F, G]),
    ('<function=f>{"a": 1, "b": "x"}</function>', [F]),
    ("<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nx\n</parameter>\n"
     "</function>\n</tool_call>", [F]),
    ("f(a=-1, b=[1.5, (2, 3)], c=None)", [Call("f", {"a": -1, "b": [1.5, (2, 3)], "c": None})]),
    ("", []), ("None of these functions helps.", []), ("It is 4.", []), ("[1, 2]", []),
    ('{"answer": 4}', []), ("f(1)", []), ("f(a=b)", []), ("print", []),
    ("```\nx = f(a=1)\n```", []),
    ("[" * 5000, []), ("(" * 300, []), ('{"name": "f", "arguments": [1]}', []), ("\x00", []),
])  # fmt: skip
def test_calls_are_read_in_the_forms_of_public_models(reply: str, found: list[Call]) -> None:
    assert calls_in(reply) == found


@pytest.mark.parametrize("reply", [
    "<tool_call>f, please</tool_call>", '[TOOL_CALLS] [{"name": "f"}]', "<|python_tag|>x = 1",
    "<function=f>{a: 1}</function>",
    # Values that JSON in UTF-8 cannot carry on to the program that asked.
    "<tool_call>f(a={1})</tool_call>", '<tool_call>f(a=b"x")</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>',
    "<function=f><parameter=x>NaN</parameter></function>",
])  # fmt: skip
def test_marks_without_a_call_are_no_text(reply: str) -> None:
    with pytest.raises(Unreadable):
        calls_in(reply)


@pytest.mark.parametrize(("value", "right", "kind", "same"), [
    (5, [5], "integer", True), (5.0, [5], "integer", False), (True, [1], "integer", False),
    (5, [5.0], "float", True), ("5", [5], "integer", False), (0, [False], "boolean", False),
    ("x", ["x"], "integer", True),  # the name of a variable
    ("April 1, 2024", ["april 1,2024"], "string", True), ("It's", ['it"s'], "string", True),
    ("Paris", ["London", "paris"], "string", True), ("Rome", ["London"], "string", False),
    ([1, 2], [[2, 1], [1, 2]], "array", True), ([1, 2], [[1, 2, 3]], "array", False),
    ((1, 2), [[1, 2]], "tuple", True), ([1, 2], [[1.0, 2.0]], "array", True),
    (["New York"], [["new-york"]], "array", True), ([], ["", []], "array", True),
    ({"k": "V"}, [{"k": ["v", "w"], "m": ["", 1]}], "dict", True),
    ({"k": "v", "n": 1}, [{"k": ["v"]}], "dict", False), ({}, [{"k": ["v"]}], "dict", False),
    ([{"k": "v"}], [[{"k": ["v"]}]], "array", True), ([{"k": "v"}], [[]], "array", False),
    (None, ["x"], "string", False), ("x", ["x"], "any", True),
])  # fmt: skip
def test_arguments_are_compared_as_bfcl_does(value, right, kind, same) -> None:
    assert argument_matches(value, right, {"type": kind}) is same


def test_a_call_needs_its_name_and_all_arguments_that_are_not_optional() -> None:
    schema = {"properties": {"a": {"type": "integer"}, "b": {"type": "string"},
                             "c": {"type": "integer"}}, "required": ["a"]}  # fmt: skip
    functions, right = {"lib.f": schema}, {"lib.f": {"a": [1], "b": ["x", ""]}}
    assert matches(Call("lib.f", {"a": 1}), right, functions)
    assert matches(Call("lib_f", {"a": 1, "b": "X"}), right, functions)
    assert not matches(Call("f", {"a": 1}), right, functions)
    assert not matches(Call("lib.f", {"b": "x"}), right, functions)
    assert not matches(Call("lib.f", {"a": 1, "c": 2}), right, functions)
    assert not matches(Call("lib.f", {"a": 1, "unknown": 2}), right, functions)


def test_several_calls_may_come_in_any_order() -> None:
    schema = {"properties": {"a": {"type": "integer"}}, "required": []}
    functions = {"f": schema}
    one, two = Call("f", {"a": 1}), Call("f", {"a": 2})
    right = [{"f": {"a": [1, 2]}}, {"f": {"a": [1]}}]  # the first fits both, the second one
    for calls, same in (
        ([one, two], True), ([two, one], True), ([two, two], False), ([one], False), ([], False),
    ):  # fmt: skip
        assert all_match(calls, right, functions) is same
    assert all_match([], [], functions)
    assert not all_match([one], [], functions)


def test_schemas_become_json_schema() -> None:
    given = {"type": "dict", "required": ["x"], "properties": {
        "x": {"type": "float", "optional": True}, "type": {"type": "any", "description": "d"},
        "z": {"type": "array", "items": {"type": "tuple", "items": {"type": "integer"}}},
    }}  # fmt: skip
    assert json_schema(given) == {"type": "object", "required": ["x"], "properties": {
        "x": {"type": "number"}, "type": {"description": "d"},
        "z": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    }}  # fmt: skip


RECORD = {
    "id": "a_0", "question": [[{"role": "user", "content": "Weather in Paris?"}]],
    "function": [{"name": "weather", "description": "d", "parameters": {
        "type": "dict", "properties": {"city": {"type": "string"}}, "required": ["city"]}}],
}  # fmt: skip
RIGHT = {"id": "a_0", "ground_truth": [{"weather": {"city": ["Paris"]}}]}


def task(folder: Path, record: dict = RECORD, right: dict | None = RIGHT, **settings) -> ToolCalls:
    (folder / "q.json").write_text(json.dumps(record) + "\n")
    if right is not None:
        (folder / "a.json").write_text(json.dumps(right) + "\n")
        settings["answers"] = str(folder / "a.json")
    return ToolCalls(path=str(folder / "q.json"), **settings)


def test_functions_are_listed_by_the_template_or_in_a_message(tmp_path) -> None:
    (question,) = task(tmp_path).asked("test")
    (tool,) = question.tools
    assert tool["function"]["parameters"]["type"] == "object"
    assert question.messages == [{"role": "user", "content": "Weather in Paris?"}]
    (question,) = (found := task(tmp_path, form="text")).asked("test")
    assert not question.tools
    assert [one["role"] for one in question.messages] == ["system", "user"]
    assert '"name": "weather"' in question.messages[0]["content"]
    assert graded(found, question, question.answer) == 1
    trained = task(tmp_path, form="text", split="train")
    assert TaskEnvironment(trained).reset(0, 1).prompt == question.messages


def test_rollouts_refuse_tools_that_they_would_not_show(tmp_path) -> None:
    with pytest.raises(SettingError, match="set form=text"):
        TaskEnvironment(task(tmp_path, split="train")).reset(0, 1)


def test_without_answers_nothing_may_be_called(tmp_path) -> None:
    found = task(tmp_path, right=None)
    (question,) = found.asked("test")
    replies = ["I cannot.", "", "<tool_call>?</tool_call>", question.prompt, "weather(city='P')"]
    assert [graded(found, question, one) for one in replies] == [1, 1, 1, 1, 0]


@pytest.mark.parametrize(("record", "right", "said"), [
    (RECORD, {**RIGHT, "id": "a_1"}, "no answer with the id 'a_0'"),
    (RECORD, {"id": "a_0", "ground_truth": ["weather(city='Paris')"]}, "ground_truth is no list"),
    ({**RECORD, "question": [[]]}, RIGHT, "does not end with a message of the user"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(tmp_path, record, right, said) -> None:
    with pytest.raises(SettingError, match=said):
        task(tmp_path, record, right).asked("test")


def test_questions_of_several_turns_are_counted(tmp_path) -> None:
    found = task(tmp_path, {**RECORD, "question": RECORD["question"] * 2})
    ((note, count),) = found.notes.items()
    assert (count, "several turns" in note) == (1, True)


@pytest.mark.parametrize("name", ["simple_python", "multiple"])
def test_all_references_of_bfcl_are_right_and_nothing_is_not(shared, name: str) -> None:
    path, answers = (
        str(shared(f"tool_use/{start}BFCL_v4_{name}.json.gz")) for start in ("", "possible_answer_")
    )
    found = ToolCalls(path=path, answers=answers)
    asked = found.asked("test")
    assert len(asked) == {"simple_python": 400, "multiple": 200}[name]
    assert all(graded(found, one, one.answer) == 1 for one in asked)
    assert all(graded(found, one, one.answer.replace("<tool_call>", "")) == 0 for one in asked[:5])
    assert not any(graded(found, one, "") for one in asked)
    others = [graded(found, one, other.answer) for one, other in pairwise(asked)]
    assert sum(others) < 5


def test_no_call_is_right_where_no_function_fits(shared) -> None:
    found = ToolCalls(path=str(shared("tool_use/BFCL_v4_irrelevance.json.gz")))
    asked = found.asked("test")
    assert len(asked) == 240
    assert all(graded(found, one, "None of these helps.") == 1 for one in asked)
    assert not any(graded(found, one, f"[{one.tools[0]['function']['name']}()]") for one in asked)


@pytest.mark.parametrize("count", [100, 500, 900, 2000])
def test_deep_names_and_values_are_no_error(count: int) -> None:
    for reply in ("a" + ".a" * count + "(b=1)", "f(a=" + "[" * count + "]" * count + ")",
                  "f(a=" + "-" * count + "1)", "f" + "()" * count):  # fmt: skip
        assert isinstance(calls_in(reply), list)
    assert calls_in("a.b.c(d=1)") == [("a.b.c", {"d": 1})]
