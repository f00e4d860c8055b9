"""Tools that a model may call: which forms its answer may have.

A call is written as Hermes and Qwen write it:

    <tool_call>
    {"name": "weather", "arguments": {"town": "Rome"}}
    </tool_call>
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from culm.text.grammar import of_lark, with_form
from culm.tools.text import CLOSE, OPEN

# The lexer takes the first mark that it meets, so text before a call contains none.
TEXT = f'TEXT: /(?s:.*)/\nopen[lazy]: TEXT "{OPEN}"\n'


@dataclass(frozen=True)
class Tool:
    """parameters: a JSON schema of the arguments, an object. strict: calls must follow it."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    @property
    def plain(self) -> dict[str, Any]:
        """In the form of chat templates."""
        function = {"name": self.name, "parameters": self.schema}
        if self.description:
            function["description"] = self.description
        return {"type": "function", "function": function}

    @property
    def schema(self) -> Mapping[str, Any]:
        return self.parameters or {"type": "object", "properties": {}}


@dataclass(frozen=True)
class ToolUse:
    """What an answer may do with tools.

    called: "auto" leaves it to the model, "required" demands at least one call. several: an answer
    may have several calls. limited: the prompt may show other tools, which must not be called.
    """

    tools: Sequence[Tool]
    called: Literal["auto", "required"] = "auto"
    several: bool = True
    limited: bool = False

    def form(self, answer: str | None = None) -> str | None:
        """A form for `culm.text.grammar`; None: any text, in which calls are then looked for.

        answer: the form of an answer without calls.
        """
        exact = self.limited or any(tool.strict for tool in self.tools)
        if self.called == "auto" and self.several and not exact and answer is None:
            return None
        schemas = {f"arguments_{i}": _object(tool.schema) for i, tool in enumerate(self.tools)}
        heads = [f'{{"name": {json.dumps(tool.name)}, "arguments": ' for tool in self.tools]
        bodies = [
            f"{_text(head)} @{rule} {_text('}')}" for head, rule in zip(heads, schemas, strict=True)
        ]
        rules = f'body: "\\n"? ({" | ".join(bodies)}) "\\n"? {_text(CLOSE)}\n'
        call = f"{_text(OPEN)} body"
        calls = f'{call} ("\\n"? {call})*' if self.several else call
        if self.called == "required":
            return of_lark(f"start: {calls}\n{rules}", schemas)
        if answer is not None:
            return with_form(of_lark(f"start: @form | {calls}\n{rules}", schemas), answer)
        start = "(open body)* TEXT" if self.several else "TEXT | open body"
        return of_lark(f"start: {start}\n{TEXT}{rules}", schemas)


def _object(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments are an object, also where a schema does not say so."""
    return {"type": "object", **schema}


def _text(text: str) -> str:
    """A text in a grammar."""
    return json.dumps(text, ensure_ascii=False)
