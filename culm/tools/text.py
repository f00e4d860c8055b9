"""Tools without a place in a chat template: as text in the messages of the system and the user."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

LISTED = """\
You can call these functions:
{functions}

To call one, reply only with
<tool_call>{{"name": "...", "arguments": {{...}}}}</tool_call>
You then read its result, and may call again. When you know the answer, reply with it alone."""


def listing(tools: Iterable[Mapping[str, Any]]) -> str:
    """The text of a system message about tools, each in the form of OpenAI's API."""
    return LISTED.format(functions="\n".join(json.dumps(one["function"]) for one in tools))


def response(text: str) -> str:
    """The result of a call as a message of the user."""
    return f"<tool_response>\n{text}\n</tool_response>"
