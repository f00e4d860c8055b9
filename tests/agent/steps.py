"""Models whose answers a test writes, and tools for them."""

import json
from dataclasses import dataclass, field

from culm.agent.answer import ModelAnswer, ToolCall
from culm.agent.loaded import LoadedChat
from culm.config import parse
from culm.serve.fixture import Script, ScriptedModel

TEXT = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": False,
}


def written(name: str, **arguments) -> str:
    """A call as a model writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def scripted_chat(*answers) -> LoadedChat:
    """A model in this process; answers are (pattern of the last message, what it says)."""
    said = [{"when": when, "say": say} for when, say in answers]
    return LoadedChat(ScriptedModel(parse(Script, {"answers": said}, "script")))


@dataclass
class Reciter:
    """A `ChatModel` that gives answers in order, and keeps what it was asked."""

    answers: list
    asked: list = field(default_factory=list)

    def answer(self, messages, tools, max_tokens, seconds):
        self.asked.append((list(messages), tools, max_tokens, seconds))
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


def calls(*pairs, content="", tokens=10) -> ModelAnswer:
    """An answer that calls tools: pairs of a name and JSON, or what becomes JSON."""
    made = (ToolCall(n, a if isinstance(a, str) else json.dumps(a)) for n, a in pairs)
    return ModelAnswer(content, tuple(made), tokens=tokens)


@dataclass
class Tool:
    """A tool that gives what `does` gives for its text."""

    name: str
    does: object
    description: str = "A tool."
    parameters: dict = field(default_factory=lambda: TEXT)
    ran: list = field(default_factory=list)

    def run(self, arguments, seconds):
        self.ran.append(arguments)
        return self.does(arguments["text"])


def echo() -> Tool:
    return Tool("search", lambda text: text)  # the name of a tool that needs no approval
