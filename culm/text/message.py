"""The text of an answer as the parts of a message: reasoning, content and calls of tools.

<think>                          reasoning
It asks for the weather.
</think>
I look it up.                    content
<tool_call>                      call 0 of weather, its arguments as they come
{"name": "weather", "arguments": {"town": "Rome"}}
</tool_call>
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from culm.task.called import Unreadable, calls_in, is_writable
from culm.text.reply import overlap
from culm.tokenizer.tokenizer import Tokenizer
from culm.tools.text import CLOSE, OPEN

THINK, THOUGHT = "<think>", "</think>"
HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')


def thinks(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether a prompt ends with the mark that starts reasoning."""
    return tokenizer.decode(prompt[-8:], specials=True).rstrip().endswith(THINK)


class CallDelta(NamedTuple):
    """A piece of call `number`, from 0. name: with its first piece. arguments: JSON in parts."""

    number: int
    name: str | None
    arguments: str


class Delta(NamedTuple):
    """What a piece of text adds to a message; one of these."""

    content: str = ""
    reasoning: str = ""
    call: CallDelta | None = None


class Joined(NamedTuple):
    """A whole message. calls: name and arguments of each, as JSON."""

    content: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]


def joined(deltas: Sequence[Delta]) -> Joined:
    """What all pieces of a message add up to."""
    names: list[str] = []
    arguments: list[str] = []
    for delta in deltas:
        if delta.call and delta.call.name is not None:
            names.append(delta.call.name)
            arguments.append("")
        if delta.call:
            arguments[delta.call.number] += delta.call.arguments
    return Joined(
        "".join(delta.content for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        tuple(zip(names, arguments, strict=True)),
    )


class MessageReader:
    """Reads the text of one answer piece by piece.

    thinking: the prompt ends with <think>, so the answer starts with its reasoning. calls: whether
    tools were offered; without them, marks of calls are plain text. White space around reasoning
    and around calls is left out. What is between the marks of a call and cannot be read stays text.
    """

    def __init__(self, thinking: bool = False, calls: bool = False) -> None:
        self._calls = calls
        self._state = self._reasoning if thinking else self._start
        self._held = ""  # text that cannot be told yet
        self._said = False  # whether there was content
        self._object = JsonObject()
        self.called = 0  # calls so far

    def read(self, text: str, last: bool = False) -> list[Delta]:
        """What one more piece of text adds. last: no more text comes."""
        self._held += text
        found: list[Delta] = []
        while True:
            state, held = self._state, self._held
            found += state(last)
            if self._state == state and self._held == held:
                return found

    # Each state takes from `_held` what it can, and may go to another state.

    def _start(self, last: bool) -> Iterator[Delta]:
        """Before the first letter."""
        text = self._held.lstrip()
        if text.startswith(THINK):
            self._go(self._reasoning, text[len(THINK) :])
        elif last or (text and not THINK.startswith(text)):
            self._go(self._content, self._held)
        return iter(())

    def _reasoning(self, last: bool) -> Iterator[Delta]:
        before, mark, after = self._held.partition(THOUGHT)
        ready = before if mark or last else before[: len(before) - overlap(before, THOUGHT)]
        shown = ready.rstrip()  # white space may be followed by the mark
        self._held = "" if last else before[len(shown) :]
        if mark:
            self._go(self._after_reasoning, after)
        shown = shown if self._said else shown.lstrip()
        self._said |= bool(shown)
        if shown:
            yield Delta(reasoning=shown)

    def _after_reasoning(self, last: bool) -> Iterator[Delta]:
        self._said = False
        self._held = self._held.lstrip()
        if self._held or last:
            self._go(self._content, self._held)
        return iter(())

    def _content(self, last: bool) -> Iterator[Delta]:
        if not self._calls:
            yield from self._show(self._held)
            self._held = ""
            return
        before, mark, after = self._held.partition(OPEN)
        if mark:
            self._go(self._call, after)
            yield from self._show(before.rstrip())
            return
        ready = before if last else before[: len(before) - overlap(before, OPEN)]
        shown = ready if last else ready.rstrip()
        self._held = before[len(shown) :]
        yield from self._show(shown)

    def _show(self, text: str) -> Iterator[Delta]:
        if self.called and not self._said:
            text = text.lstrip()
        if text:
            self._said = True
            yield Delta(content=text)

    def _call(self, last: bool) -> Iterator[Delta]:
        """After the opening mark: the name, then the arguments as they come, or the whole call."""
        head = HEAD.match(self._held)
        name = _name(head[1]) if head else None
        if head and name is not None:
            self._object = JsonObject()
            self._go(self._arguments, self._held[head.end() :])
            yield self._called(name)
            return
        inner, mark, after = self._held.partition(CLOSE)
        if not (mark or last):
            return
        self._go(self._content, after)
        try:
            calls = calls_in(OPEN + inner + CLOSE)
        except Unreadable:
            yield from self._show(OPEN + inner + mark)
            return
        for name, arguments in calls:
            yield self._called(name, json.dumps(arguments, ensure_ascii=False))

    def _called(self, name: str, arguments: str = "") -> Delta:
        self.called += 1
        self._said = False
        return Delta(call=CallDelta(self.called - 1, name, arguments))

    def _arguments(self, last: bool) -> Iterator[Delta]:
        taken = self._object.take(self._held)
        text = self._held[:taken]
        self._held = self._held[taken:]
        if self._object.complete:
            self._state = self._closing
        if text:
            yield Delta(call=CallDelta(self.called - 1, None, text))

    def _closing(self, last: bool) -> Iterator[Delta]:
        """After the arguments; what was not closed ends with the text or where a call begins."""
        end, again = self._held.find(CLOSE), self._held.find(OPEN)
        if again >= 0 and not 0 <= end < again:
            self._go(self._content, self._held[again:])
        elif end >= 0:
            self._go(self._content, self._held[end + len(CLOSE) :])
        elif last:
            self._go(self._content, self._held.lstrip().removeprefix("}"))
        return iter(())

    def _go(self, state: object, held: str) -> None:
        self._state, self._held = state, held  # type: ignore[assignment]


def _name(text: str) -> str | None:
    """The text that a JSON string stands for; None if it is not one, or UTF-8 cannot encode it."""
    try:
        name = json.loads(text)
    except ValueError:
        return None
    return name if is_writable(name) else None


class JsonObject:
    """Finds the end of a JSON object in a text that comes in pieces, also of one that is cut off by
    the mark after it."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = self.complete = False

    def take(self, text: str) -> int:
        """How many characters belong to the object."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = character == "\\"
                self._quoted = character != '"'
            elif character == '"':
                self._quoted = True
            elif character == "<":  # of the mark that closes the call: JSON has it in texts only
                self.complete = True
                return place
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.complete = True
                    return place + 1
        return len(text)
