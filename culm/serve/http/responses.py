"""OpenAI's Responses API without a memory: each request holds the whole dialogue.

https://platform.openai.com/docs/api-reference/responses and https://www.openresponses.org
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from culm.serve.http.forms import (
    FunctionName,
    NamedTool,
    Schema,
    ToolFunction,
    ToolName,
    ToolParameter,
    tool_use,
)
from culm.serve.http.protocol import GenerationRequest
from culm.serve.http.wire import UNSUPPORTED, Neutral, Wire
from culm.serve.query import ChatPrompt, Query
from culm.text.grammar import of_json
from culm.text.tools import ToolUse

Json = dict[str, Any]
# What an answer carries besides its text, and comes back when it is sent again.
ITEM: Neutral = {"id": (), "status": ("completed", "incomplete", "in_progress"), "logprobs": ([],)}


class TextPart(Wire):
    neutral: ClassVar[Neutral] = {**ITEM, "annotations": ([],)}

    type: Literal["input_text", "output_text", "text", "reasoning_text"]
    text: str


class Item(Wire):
    """Something said or done; the fields are those of all types."""

    neutral: ClassVar[Neutral] = {"summary": ([],), "encrypted_content": ()}

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    id: str | None = None
    status: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[TextPart] | None = None
    call_id: str | None = None
    name: ToolName | None = None
    arguments: str | None = None
    output: str | list[TextPart] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Item:
        needed = {
            "message": ("role", "content"),
            "function_call": ("call_id", "name", "arguments"),
            "function_call_output": ("call_id", "output"),
            "reasoning": (),
        }[self.type]
        for name in needed:
            if name not in self.model_fields_set:  # null means absent
                raise ValueError(f"{name}: an item of type {self.type} needs it")
        return self


class TextFormat(Wire):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    given: Schema | None = Field(None, alias="schema")
    strict: bool | None = None

    def form(self) -> str | None:
        if self.type == "json_object":
            return of_json({"type": "object"})
        return of_json({} if self.given is None else self.given) if self.type != "text" else None


class TextSettings(Wire):
    neutral: ClassVar[Neutral] = {"verbosity": ("medium",)}

    format: TextFormat = TextFormat()


class FlatTool(ToolFunction):
    """A function: its fields are in one object with its type here."""

    type: Literal["function"]


class FlatChoice(FunctionName):
    type: Literal["function"]


def _asked(given: Any) -> Any:
    """A text alone is a question of the user."""
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


Items = Annotated[
    list[Item],
    Field(min_length=1, max_length=4096),
    BeforeValidator(_asked, json_schema_input_type=str | list[Item]),
]


class ResponseRequest(GenerationRequest):
    """Fields of plain generation that this API has not are refused."""

    neutral: ClassVar[Neutral] = {
        **UNSUPPORTED, "n": (1,), "max_tokens": (), "response_format": (), "stream_options": (),
        "previous_response_id": (), "conversation": (), "prompt": (), "background": (False,),
        "truncation": ("disabled",), "include": ([],), "reasoning": ({},), "max_tool_calls": (),
        "top_logprobs": (0,), "structured_outputs": (),
    }  # fmt: skip

    input: Items
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextSettings = TextSettings()
    tools: list[FlatTool] = Field([], max_length=128)
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def tool_use(self) -> ToolUse | None:
        """As of a chat."""
        choice: Any = self.tool_choice
        if isinstance(choice, FlatChoice):
            choice = NamedTool(type="function", function=FunctionName(name=choice.name))
        return tool_use(self._nested, choice, self.parallel_tool_calls is not False)

    @property
    def _nested(self) -> list[ToolParameter]:
        return [
            ToolParameter(
                type="function",
                function=ToolFunction(**one.model_dump(exclude={"type"}, exclude_none=True)),
            )
            for one in self.tools
        ]

    @model_validator(mode="after")
    def _callable(self) -> ResponseRequest:
        use = self.tool_use
        if self.text.format.form() and use and use.called == "required":
            raise ValueError("tool_choice: a call that is required contradicts the form of a text")
        return self

    def form(self) -> str | None:
        use, form = self.tool_use, self.text.format.form()
        return use.form(form) if use else form

    def query(self) -> Query:
        """The next turn of the dialogue."""
        tools = [one.tool for one in self._nested] if self.tool_use else []
        return self._query([ChatPrompt(self.messages(), tools)], self.max_output_tokens)

    def messages(self) -> list[Json]:
        """In the form of chat templates; calls and reasoning belong to the assistant's messages."""
        found: list[Json] = []
        if self.instructions:
            found.append({"role": "system", "content": self.instructions})
        for item in self.input:
            _add(found, item)
        return found


def _add(messages: list[Json], item: Item) -> None:
    if item.type == "function_call_output":
        said = {"tool_call_id": item.call_id, "content": _joined(item.output)}
        messages.append({"role": "tool", **said})
        return
    if item.type == "message" and item.role != "assistant":
        role = "system" if item.role == "developer" else str(item.role)
        messages.append({"role": role, "content": _joined(item.content)})
        return
    # One turn of the assistant has reasoning, then a text, then calls.
    place = ("reasoning", "message", "function_call").index(item.type)
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if last is None or (place == 1 and "content" in last) or (place < 2 and "tool_calls" in last):
        last = {"role": "assistant"}
        messages.append(last)
    if item.type == "reasoning":
        last["reasoning_content"] = _joined(item.content)
    elif item.type == "message":
        last["content"] = _joined(item.content)
    else:
        function = {"name": item.name, "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        last.setdefault("tool_calls", []).append(call)


def _joined(content: str | Sequence[TextPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)
