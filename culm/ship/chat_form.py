"""The form of a chat template: what stands before and after each message.

Most templates write each message between two fixed texts, whatever comes before it. Such a form
can be written in the language of another program's templates. It is found by rendering a few
dialogues, and compared with the template on others; a template that does more is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from culm.config import SettingError
from culm.tokenizer.chat import Chat
from culm.tokenizer.tokenizer import Tokenizer

ASKED, SAID, AGAIN = (f"zq{letter}qz" for letter in "abc")  # words that no template writes


class NoFormError(SettingError):
    """A chat template that has no such form."""


class Around(NamedTuple):
    """What a template writes before and after a content."""

    before: str
    after: str


@dataclass(frozen=True)
class ChatForm:
    """begin: before the first message. unasked: after it, if there is no system message. system:
    None if the template takes none. inside: the system message stands in the first question, before
    its content. prompt: what asks for an answer.
    """

    begin: str
    unasked: str
    system: Around | None
    inside: bool
    user: Around
    assistant: Around
    prompt: str

    def text(self, messages: Sequence[Mapping[str, str]], prompt: bool = False) -> str:
        """The text of a dialogue, as `Chat.text` gives it."""
        first = messages[0]
        asked = first["content"] if first["role"] == "system" else None
        system = "" if asked is None or self.system is None else asked.join(self.system)
        parts = [self.begin, self.unasked if asked is None else "" if self.inside else system]
        for index, message in enumerate(messages[asked is not None :]):
            before, after = self.user if message["role"] == "user" else self.assistant
            parts += [before, system if self.inside and not index else "", message["content"]]
            parts.append(after)
        return "".join(parts) + (self.prompt if prompt else "")


def form_of(tokenizer: Tokenizer) -> ChatForm:
    """The form of a tokenizer's chat template.

    Raises:
        NoFormError: the template writes a message differently in different places.
        SettingError: there is no template.
    """
    chat = tokenizer.chat
    try:
        form = _found(chat)
        wrong = [dialogue for dialogue in _dialogues(form) if not _agrees(chat, form, dialogue)]
    except ValueError as error:
        raise _refused(str(error)) from None
    if wrong:
        raise _refused(f"not in a dialogue of {', '.join(one['role'] for one in wrong[0])}")
    return form


def _refused(why: str) -> NoFormError:
    return NoFormError(
        f"chat template: it does not write fixed texts around each message ({why}), so it has no "
        "equivalent in this format"
    )


def _found(chat: Chat) -> ChatForm:
    said = _dialogue("user", ASKED, "assistant", SAID, "user", AGAIN)
    start, middle, between, after_user = _split(chat.text(said), ASKED, SAID, AGAIN)
    *_, after_answer = _split(chat.text(said[:2]), ASKED, SAID)
    first = chat.text(said[:1])
    before_user, before_answer = between[len(after_answer) :], middle[len(after_user) :]
    asking = chat.text(said[:1], prompt=True)
    opening = start[: len(start) - len(before_user)]
    user, assistant = Around(before_user, after_user), Around(before_answer, after_answer)
    form = ChatForm(opening, "", None, False, user, assistant, asking[len(first) :])
    return _with_system(chat, form)


def _with_system(chat: Chat, form: ChatForm) -> ChatForm:
    """The same with what the template does with a system message."""
    try:
        text = chat.text(_dialogue("system", SAID, "user", ASKED))
        before, between, _ = _split(text, SAID, ASKED)
    except ValueError:  # it refuses the role
        return form
    rest = (form.user, form.assistant, form.prompt)
    if form.user.before and not between.endswith(form.user.before):
        start = f"{form.begin}{form.user.before}"
        return ChatForm(form.begin, "", Around(before[len(start) :], between), True, *rest)
    after = between[: len(between) - len(form.user.before)]
    if before.startswith(form.begin):
        system = Around(before[len(form.begin) :], after)
        return ChatForm(form.begin, "", system, False, *rest)
    return ChatForm("", form.begin, Around(before, after), False, *rest)  # a default message


def _split(text: str, *contents: str) -> list[str]:
    """The texts before, between and after contents.

    Raises:
        ValueError: one is not there, or twice.
    """
    parts, rest = [], text
    for content in contents:
        before, found, rest = rest.partition(content)
        if not found or content in rest:
            raise ValueError("not every content stands in it once")
        parts.append(before)
    return [*parts, rest]


def _dialogue(*words: str) -> list[dict[str, str]]:
    """Roles and contents in turn."""
    return [{"role": r, "content": c} for r, c in zip(words[::2], words[1::2], strict=True)]


def _dialogues(form: ChatForm) -> list[list[dict[str, str]]]:
    """Dialogues on which the form is compared: several turns, with and without a system message."""
    turns = _dialogue(
        "user", "What is 2 + 2?", "assistant", "4", "user", "And 3 + 3?",
        "assistant", "It is\n\n6.", "user", 'Say "so" in {{ braces }}.',
    )  # fmt: skip
    known = [turns[:count] for count in range(1, 6)]
    system = _dialogue("system", "Be brief.") if form.system else []
    return [*known, *([*system, *each] for each in known)]


def _agrees(chat: Chat, form: ChatForm, messages: list[dict[str, str]]) -> bool:
    prompts = (False, True) if messages[-1]["role"] == "user" else (False,)
    return all(chat.text(messages, asks) == form.text(messages, asks) for asks in prompts)
