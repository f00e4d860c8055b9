"""Dialogues to token ids through a chat template, with a mask of the tokens to learn.

The text and its ids are those of `apply_chat_template` in transformers. An answer is learned from
the end of the prompt that would ask for it, to the token that ends its turn:

    <|user|>2 + 2?<|end|><|assistant|>4<|end|>
    -----------------------------------          the prompt of the answer
                                       ^^^^^^    learned
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

from culm.config import SettingError
from culm.tokenizer.answers import Answers
from culm.tokenizer.message import Message, keys_of_parts
from culm.tokenizer.offsets import OffsetEncoder, Tokens
from culm.tokenizer.template import ChatTemplate, Guarded
from culm.tokenizer.weights import is_learned, without_weights
from culm.tools.text import CLOSE, OPEN

SPECIALS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
FIM_TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")

# Each message is <|role|>content<|end|>; text meets only special tokens. Tools stand at the end of
# the system message, calls at the end of the assistant's.
TEMPLATE = """\
{%- if tools and (not messages or messages[0].role != 'system') -%}
{%- set messages = [{'role': 'system', 'content': ''}] + messages -%}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] -%}
{{- raise_exception('a role is system, user, assistant or tool, not ' ~ message.role) -}}
{%- endif -%}
{{- '<|' ~ message.role ~ '|>' ~ (message.content or '') -}}
{%- if loop.first -%}
{%- for tool in tools or [] -%}{{- '<tool>' ~ tool | tojson ~ '</tool>' -}}{%- endfor -%}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- set call = call.function or call -%}
{%- set arguments = call.arguments if call.arguments is string else call.arguments | tojson -%}
{{- 'CALL{"name": ' ~ call.name | tojson ~ ', "arguments": ' ~ arguments ~ '}' -}}
{{- 'CALLED' -}}
{%- endfor -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
""".replace("CALLED", CLOSE).replace("CALL", OPEN)
ARGUMENTS = "chat_template_kwargs"  # of a tokenizer's settings: further variables of its template


class ChatTokenizer(Protocol):
    """What a chat needs of a tokenizer (`culm.tokenizer.tokenizer.Tokenizer`)."""

    template: str | None
    settings: dict[str, Any]
    specials: dict[str, int]
    stop_ids: frozenset[int]

    @property
    def offsets(self) -> OffsetEncoder: ...


class EncodedDialogue(NamedTuple):
    """ids of a dialogue; learned: which of them; unread: keys that the template did not use;
    remarks: what else is lost, as phrases that follow a count."""

    ids: list[int]
    learned: list[bool]
    unread: frozenset[str] = frozenset()
    remarks: frozenset[str] = frozenset()


class Chat:
    """Dialogues in the chat template of one tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        if tokenizer.template is None:
            raise SettingError(
                "tokenizer: it has no chat template, so it cannot encode a dialogue; train from it "
                "with start.path=MODEL start.chat=true to add one"
            )
        self.tokenizer = tokenizer
        names = {"bos_token": "", "eos_token": "", **token_names(tokenizer.settings)}
        arguments = tokenizer.settings.get(ARGUMENTS) or {}
        self._template = ChatTemplate(tokenizer.template, tokenizer.specials, names, arguments)
        special = set(tokenizer.specials.values())
        self._letters = not tokenizer.stop_ids <= special  # whether a text can contain an end token

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Ids of a dialogue up to the next turn of the assistant."""
        given = self._template.guard(messages, tools)
        text = self._template.render(given, prompt=True).text
        return self._tokens(given, text).ids

    def text(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """What the template writes for a dialogue; with `prompt`, up to the assistant's next turn.

        Raises:
            ValueError: the template refuses the dialogue.
        """
        given = self._template.guard(messages)
        return self._template.unguarded(self._template.render(given, prompt).text, given.guard)[0]

    def continuation(self, messages: Sequence[Message], reply: int) -> list[int]:
        """Ids between the content of message `reply` and the next turn of the assistant."""
        given = self._template.guard(messages)
        text = self._template.render(given, prompt=True).text
        end = self._template.place(given, text, reply, end=True)
        if end is None:
            raise ValueError(f"chat template: it does not show the content of messages[{reply}]")
        end = given.plain(text, end)
        tokens = self._tokens(given, text)
        return tokens.ids[bisect_left(tokens.starts, end) :]

    def encode(
        self,
        messages: Sequence[Message],
        turns: Literal["all", "last"] = "all",
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> EncodedDialogue:
        """Ids of a dialogue, and which of them are learned.

        The assistant's turns are learned, or the last of them: the text that the template adds
        before the content, the content, and the end of the turn. A message with `weight: 0` or
        `train: false` is read and not learned. Where the mark of the next turn ends an answer, it
        follows the last one too.

        Raises:
            ValueError: nothing would be learned, a turn has no end to learn, or the template
                renders the start of a dialogue differently when more messages follow.
        """
        said = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
        if not said:
            raise ValueError("messages: no assistant turn, so nothing would be learned")
        said = [i for i in (said if turns == "all" else said[-1:]) if is_learned(messages[i], i)]
        if not said:
            raise ValueError("messages: the weight of every answer is 0: nothing would be learned")
        given = self._template.guard(list(map(without_weights, messages)), tools)
        rendered = self._template.render(given)
        answers = Answers(self._template, given, rendered.text, said)
        if said[-1] == len(messages) - 1 and not messages[-1].get("tool_calls"):
            answers.text += self._next_mark
        tokens = self._tokens(given, answers.text)
        learned = [False] * len(tokens.ids)
        for index in said:
            first, last = answers.span(index, tokens, self.tokenizer.stop_ids, self._letters)
            learned[first:last] = [True] * (last - first)
        parts = {f"content[].{key}" for one in messages for key in keys_of_parts(one)}
        return EncodedDialogue(tokens.ids, learned, rendered.unread | parts, answers.remarks())

    @cached_property
    def _next_mark(self) -> str:
        """The mark of a question, in a template where nothing else ends the answer before it.

        Generation stops there, so the last answer is learned with it; the template does not write
        it before there is a next question.
        """
        question = {"role": "user", "content": "a"}
        said = [question, {"role": "assistant", "content": "b"}]
        try:
            given = self._template.guard([*said, question])
            whole, text = (
                self._template.render(given).text,
                self._template.render(given.until(2)).text,
            )
            start = self._template.place(given.until(2), text, 1, end=True)
        except ValueError:
            return ""
        if start is None or not whole.startswith(text):
            return ""
        stops = self.tokenizer.stop_ids
        names = [name for name, id in self.tokenizer.specials.items() if id in stops]
        if any(name in text[start:] for name in names):
            return ""
        return next((name for name in names if whole.startswith(name, len(text))), "")

    def _tokens(self, given: Guarded, text: str) -> Tokens:
        return self.tokenizer.offsets.encode(*self._template.unguarded(text, given.guard))


def token_name(value: Any) -> str | None:
    """A token as in `tokenizer_config.json`: its text, or a mapping with its text."""
    return value.get("content") if isinstance(value, dict) else value


def token_names(settings: Mapping[str, Any]) -> dict[str, str]:
    """The names of special tokens by their settings; `add_bos_token` is a switch, not a name."""
    names = {key: token_name(value) for key, value in settings.items() if key.endswith("_token")}
    return {key: name for key, name in names.items() if isinstance(name, str)}
