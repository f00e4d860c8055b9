"""What a message of a dialogue holds: a text, calls of tools, reasoning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Message = Mapping[str, Any]  # role and content; other keys are for the template

KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool", "ipython")
TEXT = ("text", "input_text", "output_text")  # types of a part of a content
REASONING = ("reasoning_content", "thinking", "reasoning")  # names for the same, in this order
MEANT = ("tool_calls", "function_call", *REASONING)  # keys whose loss would change what is said


def content_of(message: Message) -> str:
    """The text of a message, given as a string or as OpenAI's list of parts.

    Raises:
        ValueError: a part is no text.
    """
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if not all(map(_is_text, parts)):
        raise ValueError("content: only text can be read")
    return "".join(part["text"] for part in parts)


def _is_text(part: Any) -> bool:
    if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
        return False
    return part.get("type") in (None, *TEXT)


def keys_of_parts(message: Message) -> set[str]:
    """Keys of the parts of a content that say more than its text."""
    parts = message.get("content")
    listed = parts if isinstance(parts, list) else [parts] if isinstance(parts, Mapping) else []
    given = (part.items() for part in listed if isinstance(part, Mapping))
    return {key for each in given for key, value in each if value is not None} - {"type", "text"}


def with_text(message: Message, index: int) -> dict[str, Any]:
    """A message with its content as a string and the arguments of its calls as objects.

    Without keys that have no value, as transformers: a template would write them as None. index: of
    the message in its dialogue.

    Raises:
        ValueError: the content is no text, or a call has no name or no arguments.
    """
    given = {key: value for key, value in message.items() if value is not None}
    if isinstance(calls := given.get("tool_calls"), list):
        given["tool_calls"] = [_with_arguments(call) for call in calls]
    if given.get("tool_calls"):
        _check_calls(given["tool_calls"], index)
    if "content" not in given:
        return given
    try:
        return {**given, "content": content_of(message)}
    except ValueError as error:
        raise ValueError(f"messages[{index}].{error}") from None


def _check_calls(calls: Any, index: int) -> None:
    """A template would write nothing for what is missing, or for each character of a text.

    Raises:
        ValueError: a call has no name, or no arguments.
    """
    for call in calls if isinstance(calls, list) else [None]:
        inner = call.get("function", call) if isinstance(call, Mapping) else {}
        fields = inner if isinstance(inner, Mapping) else {}
        if not isinstance(fields.get("name"), str) or fields.get("arguments") is None:
            raise ValueError(
                f"messages[{index}].tool_calls: not a list of calls with a name and arguments, as "
                '[{"function": {"name": "weather", "arguments": {"town": "Rome"}}}]'
            )


def with_reasoning(message: Message) -> Message:
    """With the reasoning under each name that templates read, as transformers."""
    given = (message[key] for key in REASONING if message.get(key) is not None)
    if (reasoning := next(given, None)) is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def reasoning_of(message: Message) -> str:
    """The reasoning of an answer: in a key of its own, or between marks in its content."""
    given = next((message[key] for key in REASONING if message.get(key) is not None), None)
    if given is None:
        before, mark, _ = str(message.get("content") or "").partition("</think>")
        given = before.partition("<think>")[2] if mark else ""
    return str(given).strip()


def _with_arguments(call: Any) -> Any:
    """A call with its arguments as an object: OpenAI's protocol writes them as JSON in a string."""
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _with_arguments(call["function"])}
    try:
        arguments = json.loads(call["arguments"])
    except (KeyError, TypeError, ValueError):
        return call
    return {**call, "arguments": arguments} if isinstance(arguments, dict) else call
