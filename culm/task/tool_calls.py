"""Calls of functions that a model writes: the right function with the right arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from culm.config import SettingError
from culm.source import open_source
from culm.source.record import LeftOut, Record
from culm.source.source import LeftOutOnly, found_in
from culm.task.call_match import OPTIONAL, all_match
from culm.task.called import Unreadable, calls_in
from culm.task.file_task import FileTask
from culm.task.task import Question
from culm.tools.text import written_call

WRITTEN = """\
You can call these functions:
{functions}

If a function answers the request, reply only with its call, as in
{call}. \
If none of them does, say so and call none."""
EXAMPLE = written_call("weather", json.dumps({"city": "Paris"}))
JSON_SCHEMA = {"dict": "object", "float": "number", "tuple": "array", "any": None}


class ToolCalls(FileTask):
    """The questions of BFCL (Berkeley function-calling leaderboard), in the form of its records. A
    reply scores 1 if its calls are the right ones.

    answers: the file with the right calls, or a folder with a file of the same name; null: none of
    the functions fits, and a reply is right if it calls nothing (irrelevance).

    form: tools, where the chat template lists the functions; text, where a system message does, for
    models whose template has no place for them.
    """

    kind: Literal["tool_calls"] = "tool_calls"
    name: str = "tool_calls"
    answers: str | None = None
    form: Literal["tools", "text"] = "tools"

    @property
    def paths(self) -> tuple[str, ...]:
        return super().paths if self.answers is None else (*super().paths, self.answers)

    def named_files(self) -> Mapping[str, Sequence[str]]:
        answers = {"answers": (f"possible_answer_{self.name}", "possible_answer")}
        return {**super().named_files(), **(answers if self.answers is not None else {})}

    def read(self, record: Record) -> Iterator[Question]:
        turns = record["question"]
        if len(turns) != 1:
            raise LeftOut("questions have several turns, which are not asked, and are left out")
        given = [{"role": str(one["role"]), "content": str(one["content"])} for one in turns[0]]
        if not given or given[-1]["role"] != "user":
            raise ValueError("its question does not end with a message of the user")
        tools = [
            {"type": "function", "function": {**one, "parameters": json_schema(one["parameters"])}}
            for one in record["function"]
        ]
        right = self._right_calls(record)
        functions = {one["name"]: one["parameters"] for one in record["function"]}
        before: list[Mapping[str, str]] = [*given[:-1]]
        if self.form == "text":
            before, tools = _with_functions(before, tools), []
        yield Question(
            given[-1]["content"], "\n".join(_written(one, functions) for one in right),
            before=tuple(before), tools=tuple(tools),
            fields={"id": record["id"], "functions": functions, "calls": right},
        )  # fmt: skip

    def score(self, question: Question, reply: str) -> float:
        right: Sequence[Mapping[str, Any]] = question.fields["calls"]
        try:
            calls = calls_in(reply)
        except Unreadable:
            return float(not right)  # it calls nothing
        return float(all_match(calls, right, question.fields["functions"]))

    def _right_calls(self, record: Record) -> list[Mapping[str, Any]]:
        if self.answers is None:
            return []
        number = str(record["id"])
        if number not in self._answers:
            raise ValueError(f"{self.answers} has no answer with the id {number!r}")
        return self._answers[number]

    @cached_property
    def _answers(self) -> dict[str, list[Mapping[str, Any]]]:
        assert self.answers is not None
        path = Path(self.answers).expanduser()
        if path.is_dir():
            path = path / Path(self.path).name
        source = open_source(path, setting="tasks.answers")

        def read(record: Record) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
            calls = record["ground_truth"]
            if not isinstance(calls, list) or not all(_is_call(one) for one in calls):
                raise SettingError(
                    f"{record.place}: ground_truth is no list of "
                    "{function: {argument: [each right value]}}, as BFCL has it"
                )
            yield str(record["id"]), calls

        return dict(one for _, found in found_in(source, read, LeftOutOnly()) for one in found)


def json_schema(schema: Any) -> Any:
    """A schema of BFCL as JSON schema, without what is no part of it."""
    if isinstance(schema, list):
        return [json_schema(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {
        key: {name: json_schema(one) for name, one in value.items()}
        if key == "properties" else json_schema(value) if key == "items" else value
        for key, value in schema.items() if key not in ("type", "optional")
    }  # fmt: skip
    kind = schema.get("type")
    kind = JSON_SCHEMA.get(kind, kind) if isinstance(kind, str) else kind
    return found if kind is None else {"type": kind, **found}


def _with_functions(
    before: Sequence[Mapping[str, str]], tools: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, str]]:
    """The messages with a system message that lists the functions, after what it said before."""
    listed = "\n".join(json.dumps(tool["function"]) for tool in tools)
    said = [one["content"] for one in before if one["role"] == "system"]
    system = "\n\n".join([*said, WRITTEN.format(functions=listed, call=EXAMPLE)])
    others = [one for one in before if one["role"] != "system"]
    return [{"role": "system", "content": system}, *others]


def _is_call(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) == 1
        and all(
            isinstance(given, Mapping) and all(isinstance(one, list) for one in given.values())
            for given in value.values()
        )
    )


def _written(right: Mapping[str, Any], functions: Mapping[str, Any]) -> str:
    """A right call as the chat template of Culm writes it."""
    ((name, values),) = right.items()
    needed = functions[name].get("required", ()) if name in functions else ()
    given = {key: _first(one) for key, one in values.items() if key in needed or _needed(one)}
    return written_call(name, json.dumps(given))


def _needed(values: Any) -> bool:
    return not isinstance(values, list) or OPTIONAL not in values


def _first(values: Any) -> Any:
    """The first of the right values, also within objects."""
    if not isinstance(values, list):
        return values
    return _plain(next((one for one in values if one != OPTIONAL), OPTIONAL))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _first(one) for key, one in value.items() if _needed(one)}
    return [_plain(one) for one in value] if isinstance(value, list) else value
