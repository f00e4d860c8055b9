"""The answer of a model in one step of the agent loop, and the interface of such models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from culm.tokenizer.message import Message

Json = Mapping[str, Any]


class ModelFailed(Exception):
    """No answer came; the message says why."""


@dataclass(frozen=True)
class ToolCall:
    """arguments: as the model wrote them, JSON in a text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ModelAnswer:
    """tokens: generated ones. complete: it came to its end, and was not cut at a limit."""

    content: str
    calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    tokens: int = 0
    complete: bool = True


class ChatModel(Protocol):
    """A model that is asked step by step."""

    def answer(
        self, messages: Sequence[Message], tools: Sequence[Json], max_tokens: int, seconds: float
    ) -> ModelAnswer:
        """The next message of the assistant. tools: in the form of OpenAI's API.

        Raises:
            ModelFailed: none came, or not in time.
        """
        ...


def unreadable(answer: ModelAnswer, mark: str) -> ModelAnswer:
    """The answer with a nameless call, if there is only the mark of one: so the model learns that
    it could not be read, in place of what would pass for its answer."""
    before, found, rest = answer.content.partition(mark)
    if answer.calls or not found:
        return answer
    return replace(answer, content=before.rstrip(), calls=(ToolCall("", rest),))


def written(answer: ModelAnswer, step: int) -> dict[str, Any]:
    """An answer as a message for the next step."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": call_id(step, number), "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for number, call in enumerate(answer.calls)
        ]  # fmt: skip
    return message


def call_id(step: int, number: int) -> str:
    """Ids are ours, since two servers may give the same; nine letters, as Mistral wants them."""
    return f"c{step:04d}{number:04d}"
