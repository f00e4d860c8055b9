"""What clients send about the form of an answer: tools, and structured output.

Names are those of OpenAI's API; `structured_outputs` is vLLM's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from culm.serve.http.wire import Neutral, Wire
from culm.text.grammar import of_choice, of_json, of_lark, of_regex
from culm.text.tools import Tool, ToolUse

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Schema = dict[str, Any] | bool


class ToolFunction(Wire):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolParameter(Wire):
    type: Literal["function"]
    function: ToolFunction

    @property
    def tool(self) -> Tool:
        given = self.function
        return Tool(given.name, given.description or "", given.parameters, bool(given.strict))


class FunctionName(Wire):
    name: ToolName


class NamedTool(Wire):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(Wire):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=128)


class AllowedChoice(Wire):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedChoice


def tool_use(
    given: Sequence[ToolParameter], choice: ToolChoice | None, several: bool
) -> ToolUse | None:
    """What an answer may do with tools; None: it has none.

    Raises:
        ValueError: two tools have one name, or the choice names a tool that is not there.
    """
    tools = {one.function.name: one.tool for one in given}
    if len(tools) < len(given):
        raise ValueError("tools: two of them have the same name")
    if not tools or choice == "none":
        if choice not in (None, "none", "auto"):
            raise ValueError("tool_choice: there are no tools to choose from")
        return None
    if isinstance(choice, NamedTool):
        return ToolUse(_named(tools, [choice]), "required", several=False)
    if isinstance(choice, AllowedChoice):
        allowed = choice.allowed_tools
        return ToolUse(_named(tools, allowed.tools), allowed.mode, several, limited=True)
    return ToolUse(list(tools.values()), "required" if choice == "required" else "auto", several)


def _named(tools: dict[str, Tool], chosen: Sequence[NamedTool]) -> list[Tool]:
    names = [one.function.name for one in chosen]
    if unknown := [name for name in names if name not in tools]:
        raise ValueError(f"tool_choice: there is no tool {unknown[0]!r} in tools")
    return [tools[name] for name in names]


class JsonSchema(Wire):
    name: str | None = Field(None, max_length=64)
    description: str | None = None
    given: Schema = Field({}, alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
    """json_object: any JSON object. json_schema: what a schema describes, strict or not."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema: it belongs to type json_schema, which needs it")
        return self

    def form(self) -> str | None:
        """For `culm.text.grammar`."""
        if self.json_schema is not None:
            return of_json(self.json_schema.given)
        return of_json({"type": "object"}) if self.type == "json_object" else None


class StructuredOutputs(Wire):
    """One of these."""

    neutral: ClassVar[Neutral] = {
        "disable_fallback": (True,), "disable_any_whitespace": (True,),
        "disable_additional_properties": (False,),
    }  # fmt: skip

    given: Schema | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1, max_length=1024)
    grammar: str | None = None
    json_object: Literal[True] | None = None

    @model_validator(mode="after")
    def _only_one(self) -> StructuredOutputs:
        values = (self.given, self.regex, self.choice, self.grammar, self.json_object)
        if sum(value is not None for value in values) != 1:
            raise ValueError("give one of json, regex, choice, grammar and json_object")
        return self

    def form(self) -> str:
        """For `culm.text.grammar`."""
        if self.regex is not None:
            return of_regex(self.regex)
        if self.choice is not None:
            return of_choice(self.choice)
        if self.grammar is not None:
            return of_lark(self.grammar)
        return of_json({"type": "object"} if self.given is None else self.given)
