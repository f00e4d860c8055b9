"""Questions of MCP servers to the person in the middle of a call (elicitation).

Each is shown with the name of its server, and the person may refuse. The answers go to that
server, never to the model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from culm.agent.approval import Ask
from culm.tools.function import HIDDEN

if TYPE_CHECKING:
    from mcp.types import ElicitResult

TRIES = 3  # of a person to give an answer of the right kind
YES, NO = ("y", "yes", "true"), ("n", "no", "false")


class Questions:
    """Of one server. ask: as in `Approvals`.

    seconds: that the person has taken so far, which no deadline counts.
    """

    def __init__(self, server: str, ask: Ask) -> None:
        self._server, self._ask = server, ask
        self._taken = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """With those of an open question."""
        since = self._since
        return self._taken + (0.0 if since is None else time.monotonic() - since)

    async def answer(self, context: Any, params: Any) -> ElicitResult:
        """For the client of the server."""
        from anyio.to_thread import run_sync
        from mcp.types import ElicitResult

        self._since = time.monotonic()
        try:
            found = await run_sync(self._asked, params)
        finally:
            self._taken, self._since = self.seconds, None
        return ElicitResult(action=found[0], content=found[1])

    def _asked(self, params: Any) -> tuple[Any, dict[str, Any] | None]:
        """The action of the person, and what they entered."""
        what = f"{self._server} asks: {_shown(params.message)}\n"
        if params.mode == "url":  # the host opens no pages of servers
            return "decline", None
        schema = params.requested_schema
        if self._ask(f"{what}Answer? [y]es, [n]o: ").strip().lower() not in YES:
            return "decline", None
        needed, content = schema.get("required") or (), dict[str, Any]()
        for name, field in schema.get("properties", {}).items():
            try:
                value = self._entered(name, field, name in needed)
            except ValueError:
                return "cancel", None
            content |= {} if value is None else {name: value}
        return "accept", content

    def _entered(self, name: str, field: Mapping[str, Any], needed: bool) -> Any:
        """What the person writes into a field; None: nothing. Raises ValueError in the end."""
        line = _line(name, field, needed)
        for left in reversed(range(TRIES)):
            said = self._ask(line).strip()
            if not said and ("default" in field or not needed):
                return field.get("default")
            try:
                return parsed(said, field)
            except ValueError as error:
                if not left:
                    raise
                line = f"{_shown(str(error))}\n{_line(name, field, needed)}"
        raise AssertionError("the last try returns or raises")


def parsed(said: str, field: Mapping[str, Any]) -> Any:
    """What a person wrote, as the field of a form has it.

    Raises:
        ValueError: it is not of the field's type, or none of its choices.
    """
    if not said:
        raise ValueError("it needs an answer")
    if field.get("type") == "array":
        parts = [one.strip() for one in said.split(",") if one.strip()]
        return [parsed(one, {"type": "string", **field.get("items", {})}) for one in parts]
    choices = _choices(field)
    if choices and said not in choices:
        raise ValueError(f"{said!r} is not one of {', '.join(choices)}")
    match field.get("type"):
        case "boolean":
            if said.lower() not in YES + NO:
                raise ValueError(f"{said!r} is neither yes nor no")
            return said.lower() in YES
        case "integer":
            return int(said)
        case "number":
            return float(said)
    return said


def _choices(field: Mapping[str, Any]) -> list[str]:
    named = [one.get("const") for one in field.get("oneOf") or field.get("anyOf") or ()]
    return [str(one) for one in field.get("enum") or named if one is not None]


def _line(name: str, field: Mapping[str, Any], needed: bool) -> str:
    """The prompt of a field."""
    choices = ", ".join(_choices(field) or _choices(field.get("items", {})))
    facts = [choices or str(field.get("type", "string"))]
    facts += ["separated by commas"] if field.get("type") == "array" else []
    facts += [f"default {json.dumps(field['default'])}"] if "default" in field else []
    facts += [] if needed or "default" in field else ["may be empty"]
    told = field.get("description") or field.get("title")
    return _shown(f"  {told}\n" * bool(told) + f"{name} ({'; '.join(facts)}): ")


def _shown(text: str) -> str:
    return HIDDEN.sub("\ufffd", text)
