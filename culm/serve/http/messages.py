"""The messages that clients send."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from culm.serve.http.wire import Neutral, Wire


class Part(Wire):
    type: Literal["text"]
    text: str


class ChatMessage(Wire):
    """One turn. Fields besides role and content are for the chat template."""

    neutral: ClassVar[Neutral] = {"refusal": ("",), "audio": ()}

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    function_call: dict[str, Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's name for the same

    @property
    def plain(self) -> dict[str, Any]:
        """The message in the form of chat templates; a content that is null is absent there."""
        content = self.content
        text = "".join(part.text for part in content) if isinstance(content, list) else content
        said = {} if text is None else {"content": text}
        role = "system" if self.role == "developer" else self.role
        return {"role": role, **said, **_present(self.model_dump(exclude={"role", "content"}))}


def _present(value: Any) -> Any:
    """A JSON value without fields that are null, which means absent at any depth."""
    if isinstance(value, dict):
        return {key: _present(inner) for key, inner in value.items() if inner is not None}
    return [_present(inner) for inner in value] if isinstance(value, list) else value
