"""Questions that are answered with tools: Python, databases, documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from culm.source.record import Record
from culm.task.called import Call, Unreadable, calls_in
from culm.task.file_task import FileTask
from culm.task.grade import Grade, grade
from culm.task.prompts import question_in
from culm.task.task import Question
from culm.tools.documents import Documents
from culm.tools.function import (
    ToolFunction,
    as_data,
    check_names,
    cut,
    failure,
    fault_of,
    plain,
    require_schemas,
    run,
)
from culm.tools.python import PythonFunction
from culm.tools.sql import open_database, sql_functions
from culm.tools.text import OPEN, listing, response

CALLS = 8  # of one reply


class ToolQuestions(FileTask):
    """Records of {question, answer}. A reply with calls, as in
    `<tool_call>{"name": "python", "arguments": {"code": "6 * 7"}}</tool_call>`, is answered with
    their results, which are those of `culm agent --form text`. Any other reply is the answer.
    A record with `replies` shows them to fine-tuning: calls, and the answer at the end.

    tools: what may be called. listed: a system message describes them; a model that is trained for
    these tools alone can do without, which saves most of a short dialogue. databases: files for
    sql. folder: of texts for search. steps: how many replies may have calls. seconds: of one call.
    characters: of one result. by: how the answer is graded.
    """

    kind: Literal["tool_questions"] = "tool_questions"
    name: str = "tool_questions"
    tools: tuple[Literal["python", "sql", "search"], ...] = ("python",)
    listed: bool = True
    databases: tuple[str, ...] = ()
    folder: str | None = None
    steps: PositiveInt = 4
    seconds: PositiveFloat = 2.0
    characters: PositiveInt = 2000
    by: Grade = "exact"

    @model_validator(mode="after")
    def _complete(self) -> ToolQuestions:
        if not self.tools:
            raise ValueError("tools: give at least one")
        if ("sql" in self.tools) != bool(self.databases):
            raise ValueError("databases: give them with the tool sql, and only then")
        if ("search" in self.tools) != (self.folder is not None):
            raise ValueError("folder: give it with the tool search, and only then")
        return self

    def read(self, record: Record) -> Iterator[Question]:
        question, answer = question_in(record, "question", "answer")
        replies = record.get("replies", [answer])
        if not isinstance(replies, list) or not all(isinstance(one, str) for one in replies):
            raise ValueError("its replies are not a list of texts")
        if [OPEN in one for one in replies] != [True] * (len(replies) - 1) + [False]:
            raise ValueError("its replies are not calls with an answer at the end")
        before: tuple[Mapping[str, Any], ...] = ()
        if self.listed:
            system = listing(plain(one) for one in self._functions.values())
            before = ({"role": "system", "content": system},)
        yield Question(question, answer, fields={"replies": tuple(replies)}, before=before)

    def follow(self, question: Question, replies: Sequence[str]) -> str | None:
        if OPEN not in replies[-1] or len(replies) > self.steps:
            return None
        with ExitStack() as stack:
            functions = dict(self._functions)
            if "python" in self.tools:
                python = PythonFunction(self.seconds)
                stack.callback(python.close)
                functions["python"] = python
                # Its variables are those of the calls before; this depends on replies alone.
                for reply in replies[:-1]:
                    for call in _calls(reply) or ():
                        if call.name == "python":
                            self._result(call, functions)
            calls = _calls(replies[-1])
            if calls is None:
                return response(failure("this is no call that can be read").text)
            return "\n".join(response(self._result(call, functions)) for call in calls[:CALLS])

    def shown(self, question: Question) -> Sequence[str]:
        return question.fields["replies"]

    def score(self, question: Question, reply: str) -> float:
        return 0.0 if OPEN in reply else grade(self.by, question.answer, reply)

    def _result(self, call: Call, functions: Mapping[str, ToolFunction]) -> str:
        fault = fault_of(call.name, call.arguments, functions)
        known = failure(fault) if fault else None
        found = known or run(functions[call.name], call.arguments, self.seconds)
        return cut(as_data(found.text), self.characters)

    @property
    def _functions(self) -> Mapping[str, ToolFunction]:
        return _opened(self.tools, self.databases, self.folder)


@lru_cache
def _opened(
    tools: tuple[str, ...], databases: tuple[str, ...], folder: str | None
) -> Mapping[str, ToolFunction]:
    """The functions; an interpreter is started by none of them.

    Raises:
        SettingError: one cannot be used here.
    """
    require_schemas()
    functions: list[Any] = [PythonFunction()] if "python" in tools else []
    if databases:
        functions += sql_functions([open_database(place) for place in databases])
    if folder is not None:
        functions += Documents(folder).functions()
    return check_names(functions)


def _calls(reply: str) -> list[Call] | None:
    """The calls of a reply; None if they cannot be read."""
    if OPEN not in reply:
        return []
    try:
        return calls_in(reply)
    except Unreadable:
        return None
