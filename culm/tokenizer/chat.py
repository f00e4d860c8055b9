"""Dialogues to token ids through a chat template, with a mask of the tokens to learn.

The text and its ids are those of `apply_chat_template` in transformers. An answer is learned from
the end of the prompt that would ask for it, to the token that ends its turn:

    <|user|>2 + 2?<|end|><|assistant|>4<|end|>
    -----------------------------------          the prompt of the answer
                                       ^^^^^^    learned
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

from culm.config import SettingError
from culm.tokenizer.offsets import OffsetEncoder, Tokens
from culm.tokenizer.template import ChatTemplate, Guarded, Message, keys_of_parts, reasoning_of
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
LAST = "; set data.format.turns=last to learn the last answer only"
REWRITE = "; if it writes a system message in prompts only, put that text into the first question"
WITHOUT_REASONING = (
    "dialogues have answers whose reasoning the chat template leaves out, so they are learned "
    "without it; data.format.turns=last learns the last answer only"
)
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
        end = self._plain(given, text, end)
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
        text, starts = rendered.text, dict[int, int]()
        for index in said:
            text, starts[index] = self._start(given, text, index)
        if said[-1] == len(messages) - 1 and not messages[-1].get("tool_calls"):
            text += self._next_mark
        tokens = self._tokens(given, text)
        learned, ends = [False] * len(tokens.ids), [*list(starts.values())[1:], len(text)]
        lost = any(
            reasoning_of(given.messages[index]) not in text[start:end]
            for (index, start), end in zip(starts.items(), ends, strict=True)
        )
        for index, start in starts.items():
            first, last = self._span(given, text, tokens, index, start)
            learned[first:last] = [True] * (last - first)
        parts = {f"content[].{key}" for one in messages for key in keys_of_parts(one)}
        remarks = frozenset([WITHOUT_REASONING] if lost else [])
        return EncodedDialogue(tokens.ids, learned, rendered.unread | parts, remarks)

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

    def _start(self, given: Guarded, text: str, index: int) -> tuple[str, int]:
        """Where an answer starts: after exactly the prompt that generation will use.

        Also gives the text, in which the last answer may have changed (see `_continued`).
        """
        if index == 0:
            start = self._template.place(given, text, 0, end=False)
            if start is None:
                raise ValueError("chat template: it does not show the content of messages[0]")
            return text, start
        before = given.until(index)
        prompt = self._template.render(before, prompt=True).text
        if text.startswith(prompt):
            return text, len(prompt)
        history = self._template.render(before).text
        if text.startswith(history):
            return self._continued(given, text, index, prompt, history), len(prompt)
        more = any(one.get("role") == "assistant" for one in given.messages[index + 1 :])
        raise ValueError(
            f"chat template: it renders the messages before messages[{index}] differently when "
            f"more follow, so training and generation would not agree{LAST if more else REWRITE}"
        )

    def _continued(self, given: Guarded, text: str, index: int, prompt: str, history: str) -> str:
        """The text with the last answer after a prompt that begins it, as generation would write.

        Some prompts end with <think>, and the template removes the reasoning of past answers.
        """
        start = self._template.place(given, text, index, end=False)
        # The content may begin as the rest of the prompt does.
        opened, shown = prompt[len(history) :], text[len(history) : start]
        differ = (n for n, (a, b) in enumerate(zip(opened, shown, strict=False)) if a != b)
        missing = opened[next(differ, len(shown)) :]
        content = (given.messages[index].get("content") or "").lstrip()
        end = self._template.place(given, text, index, end=True)
        early = index + 1 < len(given.messages)
        if early or end is None or not content.startswith(missing.strip()):
            raise ValueError(
                f"chat template: its prompt for messages[{index}] ends with {opened!r}, and this "
                "answer does not begin with it; write the reasoning into the answer, or change the "
                f"template's variables with start.template_arguments{LAST if early else ''}"
            )
        answer = content[len(missing.strip()) :]
        answer = answer.lstrip("\n") if missing.endswith("\n") else answer
        trimmed = not text[:end].endswith(content[-1:])
        return prompt + (answer.rstrip() if trimmed else answer) + text[end:]

    def _span(
        self, given: Guarded, text: str, tokens: Tokens, index: int, start: int
    ) -> tuple[int, int]:
        """The tokens of an answer with the end of its turn: the first one, and the one after."""
        first = bisect_right(tokens.ends, self._plain(given, text, start))
        earliest = self._plain(given, text, self._content_end(given, text, index, start))
        ends = (
            number
            for number in range(first, len(tokens.ids))
            if tokens.ids[number] in self.tokenizer.stop_ids and tokens.starts[number] >= earliest
        )
        last = next(ends, None)
        if last is None or not self._is_before_next(given, text, tokens.starts[last], index, start):
            raise ValueError(
                f"chat template: no end token follows the content of message {index}, so the model "
                f"would never learn to stop{LAST if index + 1 < len(given.messages) else ''}"
            )
        return first, last + 1

    def _content_end(self, given: Guarded, text: str, index: int, start: int) -> int:
        """Where the content of an answer ends, before which there is no end of its turn.

        Reasoning may come first, with an end of its own. Most answers need no second rendering.
        """
        message = given.messages[index]
        content = (message.get("content") or "").strip()
        if not self._letters:
            if not content:
                return start
            begin = next((n for n in range(start, len(text)) if not text[n].isspace()), start)
            if message.keys() <= {"role", "content"} and text.startswith(content, begin):
                return begin + len(content)
        return self._template.place(given, text, index, end=True) or start

    def _is_before_next(
        self, given: Guarded, text: str, place: int, index: int, start: int
    ) -> bool:
        """Whether a place in the text is before the content of the message after `index`."""
        for following in range(index + 1, len(given.messages)):
            content = (given.messages[following].get("content") or "").strip()
            found = text.find(content, start) if content else -1
            if found >= 0 and place < self._plain(given, text, found):
                return True  # the content is there or further on
            end = self._template.place(given, text, following, end=True)
            if end is not None:
                return place < self._plain(given, text, end)
        return index + 1 == len(given.messages)  # otherwise what follows may be learned

    def _tokens(self, given: Guarded, text: str) -> Tokens:
        return self.tokenizer.offsets.encode(*self._template.unguarded(text, given.guard))

    def _plain(self, given: Guarded, text: str, place: int) -> int:
        """A place in the text, when the guards before it are gone."""
        return place - text.count(given.guard, 0, place)


def token_name(value: Any) -> str | None:
    """A token as in `tokenizer_config.json`: its text, or a mapping with its text."""
    return value.get("content") if isinstance(value, dict) else value


def token_names(settings: Mapping[str, Any]) -> dict[str, str]:
    """The names of special tokens by their settings; `add_bos_token` is a switch, not a name."""
    names = {key: token_name(value) for key, value in settings.items() if key.endswith("_token")}
    return {key: name for key, name in names.items() if isinstance(name, str)}
