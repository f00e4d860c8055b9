"""The calls of functions that a model wrote in its reply, in the forms of public models."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from culm.tools.text import OPEN

NAMES = f"{OPEN[1:-1]}|function_call"
TAGGED = re.compile(rf"<({NAMES})>(.*?)(?:</\1>|\Z)", re.DOTALL)
FENCED = re.compile(r"```[\w-]*\n(.*?)```", re.DOTALL)
MARKS = ("[TOOL_CALLS]", "<|python_tag|>")  # of Mistral and of Llama 3; calls follow to the end
NAMED = re.compile(r"([\w.-]+)\s*(?:\[ARGS\])?\s*(?=\{)")  # Mistral: name[ARGS]{...}
# A function in XML, as Qwen3-Coder writes them, and Llama 3.1 with JSON within.
XML = re.compile(r"<function=([\w.-]+)>(.*?)</function>", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([\w.-]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
DECODER = json.JSONDecoder()


class Call(NamedTuple):
    """A function and its arguments by name."""

    name: str
    arguments: Mapping[str, Any]


class Unreadable(ValueError):
    """A reply that has the marks of a call, and no call that can be read."""


def calls_in(reply: str) -> list[Call]:
    """The calls of a reply, in order; none if it is only a text.

    Forms: JSON with `name` and `arguments` (or `parameters`), one or a list, between
    <tool_call> and </tool_call>, after [TOOL_CALLS] or <|python_tag|>, in a block of code, or as
    all of the reply; calls as Python writes them, `f(a=1)` or `[f(a=1), g(b=2)]`.

    Raises:
        Unreadable: the text between the marks of a call is not a call.
    """
    text = reply.strip()
    if XML.search(text):
        return [_xml(name, given) for name, given in XML.findall(text)]
    if tagged := TAGGED.findall(text):
        return [call for _, given in tagged for call in _marked(given)]
    for mark in MARKS:
        _, found, rest = text.partition(mark)
        if found:
            return [call for part in rest.split(mark) for call in _marked(part)]
    for block in FENCED.findall(text):
        if calls := _read(block):
            return calls
    return _read(text) or []


def is_writable(value: Any) -> bool:
    """Whether JSON in UTF-8 can carry a value; it has no NaN, bytes, sets or halves of pairs."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _marked(text: str) -> list[Call]:
    if (calls := _read(text)) is None:
        raise Unreadable(f"this is no call of a function: {text.strip()[:60]!r}")
    return calls


def _read(text: str) -> list[Call] | None:
    """The calls that a text consists of; None if it does not."""
    text = text.strip()
    found = (calls for read in (_json, _named, _python) if (calls := read(text)))
    return next(filter(is_writable, found), None)


def _json(text: str) -> list[Call] | None:
    """Objects or a list of them; several stand behind each other or have a `;` between them."""
    found: list[Call] = []
    while text:
        try:
            value, end = DECODER.raw_decode(text)
        except (ValueError, RecursionError):
            return None
        for one in value if isinstance(value, list) else [value]:
            if (call := call_of(one)) is None:
                return None
            found.append(call)
        text = text[end:].lstrip().removeprefix(";").lstrip()
    return found


def call_of(value: Any) -> Call | None:
    """A call in JSON; None if it is something else."""
    if not isinstance(value, Mapping):
        return None
    if isinstance(value.get("function"), Mapping):  # as in messages of OpenAI's API
        value = value["function"]
    key = next((key for key in ("arguments", "parameters") if key in value), None)
    name, given = value.get("name"), value.get(key) if key else None
    if isinstance(given, str):
        try:
            given = json.loads(given or "{}")
        except (ValueError, RecursionError):
            return None
    return Call(name, given) if isinstance(name, str) and isinstance(given, Mapping) else None


def _named(text: str) -> list[Call] | None:
    """`name[ARGS]{...}`, without the mark where it is a special token."""
    found: list[Call] = []
    while text:
        head = NAMED.match(text)
        if head is None:
            return None
        try:
            given, end = DECODER.raw_decode(text, head.end())
        except (ValueError, RecursionError):
            return None
        found.append(Call(head[1], given))
        text = text[end:].lstrip()
    return found


def _python(text: str) -> list[Call] | None:
    """`f(a=1)`, a list of them, or one a line; arguments are literals with names."""
    try:
        lines = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    found: list[Call] = []
    for line in lines:
        value = line.value if isinstance(line, ast.Expr) else None
        for one in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
            if not isinstance(one, ast.Call) or one.args:
                return None
            try:
                given = {str(word.arg): ast.literal_eval(word.value) for word in one.keywords}
            except (ValueError, TypeError, RecursionError, MemoryError):
                return None
            if (name := _dotted(one.func)) is None:
                return None
            found.append(Call(name, given))
    return found


def _dotted(node: ast.expr) -> str | None:
    """A name such as `a.b.c`; None if it is something else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _xml(name: str, given: str) -> Call:
    text = given.strip()
    values = _typed(PARAMETER.findall(text))
    try:
        call = Call(name, dict(json.loads(text) if text.startswith("{") else values))
    except (ValueError, RecursionError):
        call = None
    if not call or not is_writable(call):
        raise Unreadable(f"the arguments of {name} are no JSON: {text[:60]!r}")
    return call


def _typed(given: list[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    """Values without types: JSON where they are, else text."""
    for name, text in given:
        try:
            yield name, json.loads(text)
        except (ValueError, RecursionError):
            yield name, text
