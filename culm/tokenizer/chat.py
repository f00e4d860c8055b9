"""Dialogues to token ids through a chat template, with a mask of the tokens to learn.

The template is rendered with a mark in place of each content and cut at the marks. The pieces of
the template are encoded with special tokens, the contents without: no text of a user can become a
special token, and no marker has to be searched among tokens.

    <|user|>[0]<|end|><|assistant|>[1]<|end|>      rendered with marks
    -------- 2 + 2? -------------------- 4 -----   with contents
                                         ^ ^^^^^   learned: the answer and the end of its turn
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from culm.config import SettingError

SPECIALS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")

# Each message is <|role|>content<|end|>; nothing else, so that text meets only special tokens.
TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] -%}
{{- raise_exception('a role is system, user, assistant or tool, not ' ~ message.role) -}}
{%- endif -%}
{{- '<|' ~ message.role ~ '|>' ~ message.content ~ '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

Message = Mapping[str, Any]  # role and content; other keys are passed on to the template

# The outer characters are white space: a template that trims a content removes them.
MARK = "\x1e\ue000{}\ue001\x1e"
MARKED = re.compile("(\x1e?)\ue000([0-9]+)\ue001(\x1e?)")


class ChatTokenizer(Protocol):
    """What a chat needs of a tokenizer (`culm.tokenizer.tokenizer.Tokenizer`)."""

    template: str | None
    settings: dict[str, Any]
    specials: dict[str, int]
    stop_ids: frozenset[int]

    def encode_parts(self, parts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Ids of each part of a text; parts: text, and whether it may name special tokens."""


class Piece(NamedTuple):
    """Text of the template or a content. message: index of its message."""

    text: str
    message: int | None = None
    template: bool = True


class Chat:
    """Dialogues in the chat template of one tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        if tokenizer.template is None:
            raise SettingError(
                "tokenizer: it has no chat template, so it cannot encode a dialogue; train from it "
                "with start.path=MODEL start.chat=true to add one"
            )
        self.tokenizer = tokenizer
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(tokenizer.template)
        except jinja2.TemplateError as error:
            raise SettingError(f"chat template: {error}") from None
        names = map(re.escape, sorted(tokenizer.specials, key=len, reverse=True))
        self._specials = re.compile("|".join(names) or "(?!)")
        self._names = {
            key: token_name(value) or ""
            for key, value in {"bos_token": "", "eos_token": "", **tokenizer.settings}.items()
            if key.endswith("_token")
        }

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a dialogue up to the next turn of the assistant."""
        rendered = self._render(self._marked(messages), speaks=True)
        return [id for ids, _ in self._encoded(messages, rendered) for id in ids]

    def continuation(self, messages: Sequence[Message], reply: int) -> list[int]:
        """Ids between the content of message `reply` and the next turn of the assistant."""
        rendered = self._render(self._marked(messages), speaks=True)
        ids: list[int] = []
        for part, index in self._encoded(messages, rendered):
            ids = [] if index == reply else [*ids, *part]
        return ids

    def encode(
        self, messages: Sequence[Message], turns: Literal["all", "last"] = "all"
    ) -> tuple[list[int], list[bool]]:
        """Ids of a dialogue, and which of them are learned.

        The assistant's turns are learned, or the last of them: the text that the template adds
        before the content, the content, and the end of the turn.

        Raises:
            ValueError: nothing would be learned, a turn has no end to learn, or the template
                renders the start of a dialogue differently when more messages follow.
        """
        spoken = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
        if not spoken:
            raise ValueError("messages: no assistant turn, so nothing would be learned")
        marked = self._marked(messages)
        rendered = self._render(marked)
        starts = self._answers(marked, spoken, rendered)
        wanted = spoken if turns == "all" else spoken[-1:]
        ids: list[int] = []
        learned: list[bool] = []
        missing = set(wanted)  # turns that have not been learned to their end
        turn: int | None = None  # the assistant's turn that has not ended yet
        for part, index in self._encoded(messages, rendered, starts):
            own = len(part) if index in wanted else 0
            if index is not None:
                turn = index if index in wanted else None
            elif turn is not None:
                own = next((n + 1 for n, id in enumerate(part) if self._stops(id)), 0)
                missing -= {turn} if own else set()
                turn = None if own or part else turn
            ids += part
            learned += [place < own for place in range(len(part))]
        if missing:
            raise ValueError(
                f"chat template: no end token follows the content of message {min(missing)}, "
                f"so the model would never learn to stop"
            )
        return ids, learned

    def _stops(self, id: int) -> bool:
        return id in self.tokenizer.stop_ids

    def _encoded(
        self, messages: Sequence[Message], rendered: str, starts: Mapping[int, int] | None = None
    ) -> Iterator[tuple[list[int], int | None]]:
        """The ids of each piece, and the index of its message."""
        pieces = list(self._pieces(messages, rendered, starts or {}))
        ids = self.tokenizer.encode_parts([(piece.text, piece.template) for piece in pieces])
        return zip(ids, (piece.message for piece in pieces), strict=True)

    def _pieces(
        self, messages: Sequence[Message], rendered: str, starts: Mapping[int, int]
    ) -> Iterator[Piece]:
        """The dialogue in order; starts: where each answer starts in `rendered`."""
        end = 0
        for found in MARKED.finditer(rendered):
            index = int(found[2])
            start = starts.get(index, found.start())
            yield Piece(rendered[end:start])
            yield Piece(rendered[start : found.start()], index)
            content = content_of(messages[index])
            content = content if found[1] else content.lstrip()
            yield Piece(content if found[3] else content.rstrip(), index, template=False)
            end = found.end()
        yield Piece(rendered[end:])

    def _marked(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with a mark in place of each content."""
        marked: list[Message] = []
        for index, message in enumerate(messages):
            rest = {key: value for key, value in message.items() if key != "content"}
            # Only contents are encoded without special tokens, so no other value may name one.
            if found := self._specials.search(json.dumps(rest, ensure_ascii=False, default=str)):
                raise ValueError(f"messages[{index}]: {found[0]} is allowed in the content only")
            marked.append({**rest, "content": MARK.format(index)})
        return marked

    def _render(self, marked: Sequence[Message], speaks: bool = False) -> str:
        try:
            return self._template.render(
                messages=marked, add_generation_prompt=speaks, **self._names
            )
        except Exception as error:  # a template is a program from the author of the model
            raise ValueError(f"chat template: {error}") from None

    def _answers(
        self, marked: Sequence[Message], spoken: Sequence[int], rendered: str
    ) -> dict[int, int]:
        """Where each answer starts: after exactly the prompt that generation will use."""
        starts = {}
        for index in filter(None, spoken):
            prompt = self._render(marked[:index], speaks=True)
            starts[index] = len(prompt)
            if not rendered.startswith(prompt):
                raise ValueError(
                    f"chat template: it renders the messages before messages[{index}] differently "
                    f"when more follow, so training and generation would not agree"
                )
        return starts


class Generation(Extension):
    """`{% generation %}`, which marks the assistant's text in some templates: ignored here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def token_name(value: Any) -> str | None:
    """A token as in `tokenizer_config.json`: its text, or a mapping with its text."""
    return value.get("content") if isinstance(value, dict) else value


def content_of(message: Message) -> str:
    """The text of a message, given as a string or as OpenAI's list of parts."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
        raise ValueError("content: only text can be read")
    return "".join(part["text"] for part in parts)


def _refuse(reason: str) -> None:
    raise jinja2.TemplateError(reason)


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False)
