"""Questions of MCP servers to the person in the middle of a call (elicitation).

Each is shown with the name of its server, and the person may refuse. The answers go to that
server, never to the model.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from textwrap import indent
from threading import Thread
from typing import TYPE_CHECKING, Any

from culm.agent.approval import Person
from culm.tools.function import HIDDEN, schema_fault

if TYPE_CHECKING:
    from mcp.types import ElicitResult, ErrorData

TRIES = 3  # of a person to give an answer of the right kind
QUESTIONS = 10  # of a server in one call
LONGEST = 2000  # characters of a text that are shown
KINDS = ("string", "integer", "number", "boolean", "array")
YES, NO = ("y", "yes", "true"), ("n", "no", "false")
Said = tuple[Any, dict[str, Any] | None]  # the action of the person, and what they entered


class Questions:
    """Of all servers of a host, one at a time."""

    def __init__(self, person: Person) -> None:
        import anyio

        self.person, self._turn = person, anyio.Lock()

    def of(self, server: str, may_ask: Callable[[], bool]) -> Any:
        """The callback for the client of a server. may_ask: whether it may, at this moment."""

        async def answer(context: Any, params: Any) -> ElicitResult | ErrorData:
            from mcp.types import INVALID_PARAMS, ElicitResult, ErrorData

            if params.mode == "form" and (fault := _fault_of(params.requested_schema)):
                return ErrorData(code=INVALID_PARAMS, message=fault)
            async with self._turn:
                if not may_ask():
                    return ElicitResult(action="decline")
                action, content = await self._in_thread(server, params)
            return ElicitResult(action=action, content=content)

        return answer

    async def _in_thread(self, server: str, params: Any) -> Said:
        """What the person says. A call that is cancelled does not wait for them, nor does the end
        of the process, as it would for a thread of anyio's.
        """
        found: Future[Said] = Future()
        Thread(target=self._answer, args=(found, server, params), daemon=True).start()
        try:
            return await asyncio.wrap_future(found)
        except asyncio.CancelledError:
            sys.stderr.write(f"\n{server} waits no longer; press Enter to go on.\n")
            raise

    def _answer(self, found: Future[Said], server: str, params: Any) -> None:
        try:
            said = self._asked(server, params, found.cancelled)
        except Exception as error:
            with suppress(InvalidStateError):  # cancelled
                found.set_exception(error)
        else:
            with suppress(InvalidStateError):
                found.set_result(said)

    def _asked(self, server: str, params: Any, cancelled: Callable[[], bool]) -> Said:
        what = f"{server} asks:\n{_quoted(params.message)}\n"
        if params.mode == "url":  # the host opens no pages of servers
            what += f"It wants you to open this page yourself:\n{_quoted(params.url)}\nDone? "
        else:
            what += "Answer? "
        if self.person(f"{what}[y]es, [n]o: ").strip().lower() not in YES:
            return "decline", None
        if params.mode == "url":
            return "accept", None
        schema, content = params.requested_schema, dict[str, Any]()
        for name, field in schema.get("properties", {}).items():
            if cancelled():
                return "cancel", None
            needed = name in (schema.get("required") or ())
            try:
                prompt = f"{server}: {_prompt(name, field, needed)}"
                value = self._entered(prompt, field, needed)
            except (ValueError, EOFError):
                return "cancel", None
            content |= {} if value is None else {name: value}
        return "accept", content

    def _entered(self, prompt: str, field: Mapping[str, Any], needed: bool) -> Any:
        """What the person writes into a field; None: nothing.

        Raises:
            ValueError: nothing that fits, after some tries.
            EOFError: there will be no answer.
        """
        shown = prompt
        for left in reversed(range(TRIES)):
            line = self.person(shown)
            if not line:
                raise EOFError
            said = line.strip()
            if not said and ("default" in field or not needed):
                return field.get("default")
            try:
                return parsed(said, field)
            except ValueError as error:
                if not left:
                    raise
                shown = f"{_shown(str(error))}\n{prompt}"
        raise AssertionError("the last try returns or raises")


def _fault_of(schema: Mapping[str, Any]) -> str | None:
    """What is wrong with a form; None: nothing."""
    for name, field in schema.get("properties", {}).items():
        if not isinstance(field, Mapping) or field.get("type") not in KINDS:
            return f"{name}: no field of a form has this type"
        items = field.get("items", {})
        if not isinstance(items, Mapping) or items.get("type", "string") != "string":
            return f"{name}: a form has lists of strings only"
        form = {"type": "object", "properties": {name: dict(field)}}
        given = {name: field["default"]} if "default" in field else {}
        if fault := schema_fault(given, form):
            return fault
    return None


def parsed(said: str, field: Mapping[str, Any]) -> Any:
    """What a person wrote, as the field of a form has it.

    Raises:
        ValueError: it does not fit the field's schema.
    """
    if not said:
        raise ValueError("it needs an answer")
    value = _converted(said, field.get("type"))
    form = {"type": "object", "properties": {"answer": dict(field)}}
    if fault := schema_fault({"answer": value}, form):
        raise ValueError(fault)
    return value


def _converted(said: str, kind: Any) -> Any:
    match kind:
        case "array":
            return [one.strip() for one in said.split(",") if one.strip()]
        case "boolean":
            if said.lower() not in YES + NO:
                raise ValueError(f"{said!r} is neither yes nor no")
            return said.lower() in YES
        case "integer":
            return int(said)
        case "number":
            number = float(said)
            if not math.isfinite(number):
                raise ValueError(f"{said!r} is no number of JSON")
            return number
    return said


def _prompt(name: str, field: Mapping[str, Any], needed: bool) -> str:
    """The prompt of a field."""
    choices = ", ".join(_choices(field) or _choices(field.get("items", {})))
    facts = [choices or str(field.get("type", "string"))]
    facts += ["separated by commas"] if field.get("type") == "array" else []
    facts += [f"default {json.dumps(field['default'])}"] if "default" in field else []
    facts += [] if needed or "default" in field else ["may be empty"]
    what = field.get("description") or field.get("title")
    about = f"\n{_quoted(str(what))}\n" if what else ""
    return about + _shown(f"{name} ({'; '.join(facts)}): ").replace("\n", " ")


def _choices(field: Mapping[str, Any]) -> list[str]:
    named = [one.get("const") for one in field.get("oneOf") or field.get("anyOf") or ()]
    return [str(one) for one in field.get("enum") or named if one is not None]


def _quoted(text: str) -> str:
    """Marked on each line, so that it cannot look like a question of the agent."""
    return indent(_shown(text), "  | ", lambda line: True)


def _shown(text: str) -> str:
    return HIDDEN.sub("\ufffd", text if len(text) <= LONGEST else f"{text[:LONGEST]} ...")
