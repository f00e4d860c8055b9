"""The contract of a tool, and how a call of a model becomes the text that it reads.

Whatever a model writes, a call gives a text: the result, or what was wrong with the call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, Protocol

from culm.config import SettingError
from culm.tools.deadline import Deadline

CALL_FORM = 'between its marks stands {"name": ..., "arguments": {...}}'
GRACE = 1.0  # seconds after which a tool is left behind
CUT = "\n[cut: {left:,} of {all:,} characters are left out]"
# What a prompt or an answer is made of, in the templates of public models: a space after the first
# sign makes it plain text. Content that names special tokens is guarded by the chat template too,
# but a server of others may read it otherwise.
MARKS = re.compile(
    r"<(?=[|\uff5c]|/?(?:tool_calls?|tool_response|function_call|tools?|think|thinking|answer|s|im_\w+|"
    r"start_of_turn|end_of_turn|function=|parameter=))|\[(?=/?(?:INST|TOOL_\w+|AVAILABLE_TOOLS)\])",
    re.IGNORECASE,
)
# Control characters, and those that reorder or hide text (a terminal would obey them).
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\U000e0000-\U000e007f]"
)


class ToolError(Exception):
    """A call that gave no result; the message is for the model."""


class ToolFunction(Protocol):
    """parameters: a JSON schema of the arguments, an object."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def parameters(self) -> Mapping[str, Any]: ...

    def run(self, arguments: Mapping[str, Any], seconds: float) -> str:
        """The result of a call with arguments that follow the schema, within so much time.

        Raises:
            ToolError: there is none.
        """
        ...


class Result(NamedTuple):
    """What a model reads after a call. failed: it says why there is no result."""

    text: str
    failed: bool = False


def failure(why: str) -> Result:
    return Result(f"error: {why}", failed=True)


def plain(function: ToolFunction) -> dict[str, Any]:
    """In the form of chat templates and of OpenAI's API."""
    described = {"name": function.name, "description": function.description}
    return {"type": "function", "function": {**described, "parameters": dict(function.parameters)}}


def fault_of(name: str, arguments: Any, functions: Mapping[str, ToolFunction]) -> str | None:
    """What is wrong with a call; None: nothing.

    Raises:
        SettingError: as `require_schemas`.
    """
    if not name:
        return f"this is no call that can be read; {CALL_FORM}"
    if name not in functions:
        known = ", ".join(sorted(functions)) or "none"
        return f"there is no tool {name[:64]!r}; there are: {known}"
    if not isinstance(arguments, Mapping):
        return f"the arguments of {name} are not a JSON object"
    return schema_fault(arguments, functions[name].parameters)


def run(
    function: ToolFunction,
    arguments: Mapping[str, Any],
    seconds: float,
    paused: Callable[[], float] | None = None,
) -> Result:
    """The result of a call; never raises, since a tool may be anyone's code.

    A tool ends by itself in time; one that does not, such as at a name server that is silent, is
    left behind in its thread. paused: as in `Deadline`.
    """
    deadline = Deadline(seconds + GRACE, paused)
    done: SimpleQueue[Result] = SimpleQueue()
    work = Thread(target=lambda: done.put(_run(function, arguments, seconds)), daemon=True)
    work.start()
    while left := deadline.left:
        with suppress(Empty):
            return done.get(timeout=left)
    return failure(f"{function.name} took more than {seconds:g} s")


def _run(function: ToolFunction, arguments: Mapping[str, Any], seconds: float) -> Result:
    try:
        return Result(function.run(arguments, seconds))
    except ToolError as error:
        return failure(str(error))
    except Exception as error:
        return failure(f"{function.name} failed: {type(error).__name__}: {str(error)[:500]}")


def cut(text: str, characters: int) -> str:
    """The start of a text, with a mark if more follows."""
    if len(text) <= characters:
        return text
    return text[:characters] + CUT.format(left=len(text) - characters, all=len(text))


def as_data(text: str) -> str:
    """A text without marks of calls, turns or special tokens, which a model could take for real
    ones; the letters stay readable."""
    text = HIDDEN.sub("", text.encode("utf-8", "replace").decode())
    return MARKS.sub(lambda found: found[0] + " ", text)


def check_names(functions: Sequence[ToolFunction]) -> dict[str, ToolFunction]:
    """The functions by name.

    Raises:
        SettingError: two have the same.
    """
    found: dict[str, ToolFunction] = {}
    for one in functions:
        if one.name in found:
            raise SettingError(f"tools: two of them have the name {one.name!r}; rename one")
        found[one.name] = one
    return found


def require_schemas() -> None:
    """Raises:
    SettingError: the package `jsonschema` is not installed, without which no call is made.
    """
    try:
        import jsonschema  # noqa: F401
    except ImportError:
        raise SettingError("tools: they need jsonschema: pip install 'culm[agent]'") from None


def schema_fault(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str | None:
    """Where arguments do not fit a JSON schema; None: they do."""
    require_schemas()
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError, best_match
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        Draft202012Validator.check_schema(schema)
        # An empty registry: a schema from somewhere else must not make this process fetch a URL.
        validator = Draft202012Validator(schema, registry=Registry())
        found = best_match(validator.iter_errors(dict(arguments)))
    except (SchemaError, Unresolvable, RecursionError) as error:
        return f"the schema of its arguments cannot be used: {str(error).splitlines()[0][:200]}"
    if found is None:
        return None
    where = found.json_path.removeprefix("$").removeprefix(".") or "arguments"
    return f"{where}: {found.message[:300]}"
