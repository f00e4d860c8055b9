"""Tools for models whose chat template has no place for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from culm.agent.answer import ChatModel, Json, ModelAnswer, ToolCall, unreadable
from culm.task.called import Unreadable, calls_in
from culm.tokenizer.message import Message
from culm.tools.text import OPEN, listing, response, written_call


@dataclass(frozen=True)
class TextForm:
    """A `ChatModel` that reads tools in a system message, writes calls in its text, and reads their
    results in messages of the user, as in `culm.task.tool_questions`. listed: as there.
    """

    model: ChatModel
    listed: bool = True

    def answer(
        self, messages: Sequence[Message], tools: Sequence[Json], max_tokens: int, seconds: float
    ) -> ModelAnswer:
        text = list(_as_text(messages))
        asked = _with_listing(text, tools) if tools and self.listed else text
        found = self.model.answer(asked, (), max_tokens, seconds)
        if OPEN not in found.content:
            return found
        try:
            calls = tuple(
                ToolCall(one.name, json.dumps(dict(one.arguments), ensure_ascii=False))
                for one in calls_in(found.content)
            )
        except Unreadable:
            return unreadable(found, OPEN)
        return replace(found, content=found.content.partition(OPEN)[0].rstrip(), calls=calls)


def _with_listing(
    messages: Sequence[dict[str, Any]], tools: Sequence[Json]
) -> list[dict[str, Any]]:
    """The messages with the tools at the end of the system message."""
    said = [one["content"] for one in messages if one["role"] == "system"]
    others = [one for one in messages if one["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join([*said, listing(tools)])}, *others]


def _as_text(messages: Sequence[Message]) -> Iterator[dict[str, Any]]:
    """The messages without calls and roles of tools; results of one answer are one message."""
    results: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            results.append(response(message["content"]))
            continue
        if results:
            yield {"role": "user", "content": "\n".join(results)}
            results = []
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        calls = [written_call(one["name"], one["arguments"]) for one in functions]
        content = "\n".join(part for part in (message["content"], *calls) if part)
        yield {"role": message["role"], "content": content}
    if results:
        yield {"role": "user", "content": "\n".join(results)}
