"""A chat template: messages to text, as transformers renders it.

The text is what the template makes of the messages themselves. Where a message contains the name
of a special token, a guard character follows it while the template runs, so that the name is found
again in the text and encoded as letters: no user can write a special token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from culm.config import SettingError
from culm.source.record import ReadKeys, fields_of, valid
from culm.tokenizer.offsets import any_of
from culm.tokenizer.sandbox import compiled

Message = Mapping[str, Any]  # role and content; other keys are for the template

# Unicode has them for internal use: no text contains them, or `guard_of` chooses others.
GUARDS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool", "ipython")
# An answer writes these itself, also where a tokenizer calls them special.
WRITTEN = re.compile(r"</?(think|thinking|tool_call|tool_calls|tool_response|answer)>")
TEXT = ("text", "input_text", "output_text")  # types of a part of a content
REASONING = ("reasoning_content", "thinking", "reasoning")  # names for the same, in this order
MEANT = ("tool_calls", "function_call", *REASONING)


@dataclass(frozen=True)
class Guarded:
    """Messages whose special names are followed by `guard`. mark: another character not in them."""

    messages: list[Message]
    tools: list[Any] | None
    guard: str
    mark: str

    def until(self, index: int) -> Guarded:
        """The messages before one."""
        return Guarded(self.messages[:index], self.tools, self.guard, self.mark)

    def with_content(self, index: int, content: str) -> Guarded:
        """The same with another content in one message."""
        messages = list(self.messages)
        messages[index] = {**messages[index], "content": content}
        return Guarded(messages, self.tools, self.guard, self.mark)

    def plain(self, text: str, place: int) -> int:
        """A place in a rendered text, when the guards before it are gone."""
        return place - text.count(self.guard, 0, place)


@dataclass(frozen=True)
class Rendered:
    """text: still with guards. unread: keys of messages that the template did not ask for."""

    text: str
    unread: frozenset[str] = frozenset()


class ChatTemplate:
    """The template of one tokenizer.

    specials: names of the special tokens. names: `bos_token` and the like, for the template.
    arguments: further variables of the template, such as `enable_thinking`.

    Raises:
        SettingError: it is not a template, or has no variable of an argument's name.
    """

    def __init__(
        self,
        source: str,
        specials: Iterable[str],
        names: Mapping[str, str],
        arguments: Mapping[str, Any],
    ) -> None:
        self._template, self._variables = compiled(source)
        if unknown := sorted(arguments.keys() - self._variables):
            raise SettingError(
                f"start.template_arguments: the chat template has no variable {unknown[0]!r}"
            )
        self._specials = any_of([name for name in specials if not WRITTEN.fullmatch(name)])
        self._names, self._arguments = names, arguments

    def guard(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> Guarded:
        """The messages with a guard after every special name in them.

        Raises:
            ValueError: a content is no text, or tools are given and the template has no place.
        """
        if tools and "tools" not in self._variables:
            raise ValueError("tools: the chat template does not write them, so they would be lost")
        plain = [_with_text(message, index) for index, message in enumerate(messages)]
        given = list(tools) if tools else None
        present = set[str]()
        for text in _strings([plain, given]):
            present |= {guard for guard in GUARDS if guard in text} if not text.isascii() else set()
        guard, mark, *_ = [one for one in GUARDS if one not in present]

        def change(text: str) -> str:
            return self._specials.sub(lambda found: found[0] + guard, text)

        changed = [_mapped(message, change) for message in plain]
        return Guarded(changed, _mapped(given, change), guard, mark)

    def render(self, given: Guarded, prompt: bool = False) -> Rendered:
        """The text of the messages; with `prompt`, up to the next turn of the assistant.

        Raises:
            ValueError: the template failed, or would lose what a message says.
        """
        rendered = self._render(given, prompt)
        if given.guard in rendered.text:
            self._compare(given, prompt, rendered.text)
        return rendered

    def place(self, given: Guarded, text: str, index: int, end: bool) -> int | None:
        """Where the content of a message starts or ends in the text of the messages.

        None if the template does not show it.
        """
        content = given.messages[index].get("content") or ""
        marked = content + given.mark if end else given.mark + content
        changed = self._render(given.with_content(index, marked)).text
        place = changed.find(given.mark)
        if place < 0:
            return None
        # A template that trims a content leaves the white space before the mark.
        return next(
            (len(p) for p in (changed[:place], changed[:place].rstrip()) if text.startswith(p)),
            None,
        )

    def unguarded(self, text: str, guard: str) -> tuple[str, list[int]]:
        """The text without guards, and where the names of special tokens start that had one."""
        *guarded, last = text.split(guard)
        places, length = list[int](), 0
        for part in guarded:
            length += len(part)
            found = [name for name in self._specials.finditer(part) if name.end() == len(part)]
            places += [length - len(name[0]) for name in found]
        return "".join([*guarded, last]), places

    def _compare(self, given: Guarded, prompt: bool, text: str) -> None:
        """Check that guards changed nothing else."""
        plain = _mapped(given.messages, lambda text: text.replace(given.guard, ""))
        tools = _mapped(given.tools, lambda text: text.replace(given.guard, ""))
        if self._render(Guarded(plain, tools, given.guard, given.mark), prompt).text != (
            text.replace(given.guard, "")
        ):
            raise ValueError(
                "messages: the name of a special token is in a content that the chat template "
                "changes, so it cannot be kept as text"
            )

    def _render(self, given: Guarded, prompt: bool = False) -> Rendered:
        messages = [ReadKeys(_with_reasoning(message)) for message in given.messages]
        try:
            text = self._template.render(
                messages=messages, tools=given.tools, documents=None,
                add_generation_prompt=prompt, **{**self._names, **self._arguments},
            )  # fmt: skip
        except Exception as error:  # a template is a program from the author of the model
            raise ValueError(f"chat template: {error}") from None
        unread = set[str]()
        for index, message in enumerate(messages):
            for key in sorted(_unread(message) & given.messages[index].keys()):
                if key in MEANT or key == "content":
                    raise ValueError(
                        f"messages[{index}]: the chat template does not write {key!r}, so it would "
                        "be lost"
                    )
                unread.add(key)
        return Rendered(valid(text), frozenset(unread))


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


def _with_text(message: Message, index: int) -> dict[str, Any]:
    """Without keys that have no value, as transformers: a template would write them as None."""
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


def _with_reasoning(message: Message) -> Message:
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


def _unread(message: ReadKeys) -> set[str]:
    """Keys that the template did not read, unless it read the same reasoning by another name."""
    values = fields_of(message)
    read = [values[key] for key in REASONING if key in values and key not in message.unread]
    return {key for key in message.unread if key not in REASONING or values[key] not in read}


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


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _strings(key)
            yield from _strings(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(one, change) for one in value]
    return value
