"""A model behind an OpenAI-compatible URL as a `ChatModel`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from culm.agent.answer import Json, ModelAnswer, ModelFailed, ToolCall, unreadable
from culm.endpoint import Endpoint, EndpointError, Transient
from culm.tokenizer.message import Message
from culm.tools.text import OPEN

WAIT = 1.0  # seconds before a further attempt, where the server says nothing


@dataclass(frozen=True)
class APIChat:
    """temperature: of each answer."""

    endpoint: Endpoint
    temperature: float = 0.0

    def answer(
        self, messages: Sequence[Message], tools: Sequence[Json], max_tokens: int, seconds: float
    ) -> ModelAnswer:
        asked: dict[str, Any] = {
            "messages": list(messages), "max_tokens": max_tokens, "temperature": self.temperature,
        }  # fmt: skip
        if tools:
            asked["tools"] = list(tools)
        body = self._posted(asked, time.monotonic() + seconds)
        try:
            answer = _read(json.loads(body), max_tokens)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ModelFailed(f"{self.endpoint.url}: an answer is not a chat completion") from None
        return unreadable(answer, OPEN) if tools else answer

    def _posted(self, asked: Json, end: float) -> bytes:
        """The answer of the server, which may be busy for a while."""
        while True:
            left = max(0.01, end - time.monotonic())
            try:
                return replace(self.endpoint, timeout=left, retries=0).chat(asked)
            except EndpointError as error:
                again = error.__cause__
                after = again.after if isinstance(again, Transient) else None
                wait = WAIT if after is None else after
                busy = isinstance(again, Transient) and again.status is not None
                if not busy or time.monotonic() + wait >= end:
                    raise ModelFailed(str(error)) from None
                time.sleep(wait)


def _read(body: Any, max_tokens: int) -> ModelAnswer:
    choice = body["choices"][0]
    message = choice["message"]
    calls = tuple(_call(one["function"]) for one in message.get("tool_calls") or ())
    # A server that does not say how many tokens there are is taken to have used all of them.
    tokens = (body.get("usage") or {}).get("completion_tokens")
    return ModelAnswer(
        _text(message.get("content")), calls, _text(message.get("reasoning_content")),
        tokens if isinstance(tokens, int) and tokens >= 0 else max_tokens,
        choice.get("finish_reason") != "length",
    )  # fmt: skip


def _call(function: Mapping[str, Any]) -> ToolCall:
    given = function.get("arguments")
    return ToolCall(str(function["name"]), given if isinstance(given, str) else json.dumps(given))


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise ValueError("a content is no text")
    return value or ""
