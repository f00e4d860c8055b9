"""Tools without a place in a chat template: as text in the messages of the system and the user."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"  # of a call, as Hermes and Qwen write it


def written_call(name: str, arguments: str) -> str:
    """A call as a model writes it. arguments: as JSON."""
    return f'{OPEN}{{"name": {json.dumps(name)}, "arguments": {arguments}}}{CLOSE}'


LISTED = """\
You can call these functions:
{functions}

To call one, reply only with
{call}
You then read its result, and may call again. When you know the answer, reply with it alone."""


def listing(tools: Iterable[Mapping[str, Any]]) -> str:
    """The text of a system message about tools, each in the form of OpenAI's API."""
    functions = "\n".join(json.dumps(one["function"]) for one in tools)
    return LISTED.format(functions=functions, call=written_call("...", "{...}"))


def response(text: str) -> str:
    """The result of a call as a message of the user."""
    return f"<tool_response>\n{text}\n</tool_response>"
