"""A chat template: messages to text, as transformers renders it.

The text is what the template makes of the messages themselves. Where a message contains the name
of a special token, a guard character follows it while the template runs, so that the name is found
again in the text and encoded as letters: no user can write a special token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from culm.config import SettingError
from culm.source.record import ReadKeys, fields_of, valid
from culm.tokenizer.message import MEANT, REASONING, Message, with_reasoning, with_text
from culm.tokenizer.offsets import any_of
from culm.tokenizer.sandbox import compiled

# Unicode has them for internal use: no text contains them, or `guard_of` chooses others.
GUARDS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
# An answer writes these itself, also where a tokenizer calls them special.
WRITTEN = re.compile(r"</?(think|thinking|tool_call|tool_calls|tool_response|answer)>")


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
        plain = [with_text(message, index) for index, message in enumerate(messages)]
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
        messages = [ReadKeys(with_reasoning(message)) for message in given.messages]
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


def _unread(message: ReadKeys) -> set[str]:
    """Keys that the template did not read, unless it read the same reasoning by another name."""
    values = fields_of(message)
    read = [values[key] for key in REASONING if key in values and key not in message.unread]
    return {key for key in message.unread if key not in REASONING or values[key] not in read}


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
