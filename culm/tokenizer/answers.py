"""Where the answers of a dialogue start and end in its rendered text: what fine-tuning learns."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from culm.tokenizer.message import reasoning_of
from culm.tokenizer.offsets import Tokens
from culm.tokenizer.template import ChatTemplate, Guarded

LAST = "; set data.format.turns=last to learn the last answer only"
REWRITE = "; if it writes a system message in prompts only, put that text into the first question"
WITHOUT_REASONING = (
    "dialogues have answers whose reasoning the chat template leaves out, so they are learned "
    "without it; data.format.turns=last learns the last answer only"
)


class Answers:
    """The answers of one dialogue. text: of the dialogue, still with guards; it ends as generation
    would write it.
    """

    def __init__(
        self, template: ChatTemplate, given: Guarded, text: str, learned: Sequence[int]
    ) -> None:
        """text: what the template writes for `given`. learned: the numbers of its answers.

        Raises:
            ValueError: the template renders the start of a dialogue differently when more messages
                follow.
        """
        self._template, self._given, self.text = template, given, text
        self._starts = {index: self._start(index) for index in learned}

    def remarks(self) -> frozenset[str]:
        """What the template lost of them, as phrases that follow a count."""
        places = [*self._starts.values(), len(self.text)]
        lost = any(
            reasoning_of(self._given.messages[index]) not in self.text[start:end]
            for (index, start), end in zip(self._starts.items(), places[1:], strict=True)
        )
        return frozenset([WITHOUT_REASONING] if lost else [])

    def span(
        self, index: int, tokens: Tokens, stop_ids: frozenset[int], letters: bool
    ) -> tuple[int, int]:
        """The tokens of an answer with the end of its turn: the first one, and the one after.

        tokens: of `text`. letters: whether a text can contain an end token.

        Raises:
            ValueError: the turn has no end to learn.
        """
        first = bisect_right(tokens.ends, self._plain(self._starts[index]))
        earliest = self._plain(self._content_end(index, letters))
        ends = (
            number
            for number in range(first, len(tokens.ids))
            if tokens.ids[number] in stop_ids and tokens.starts[number] >= earliest
        )
        last = next(ends, None)
        if last is None or not self._is_before_next(tokens.starts[last], index):
            more = index + 1 < len(self._given.messages)
            raise ValueError(
                f"chat template: no end token follows the content of message {index}, so the model "
                f"would never learn to stop{LAST if more else ''}"
            )
        return first, last + 1

    def _start(self, index: int) -> int:
        """Where an answer starts: after exactly the prompt that generation will use.

        The last answer of `text` may change (see `_continued`).
        """
        if index == 0:
            start = self._place(0, end=False)
            if start is None:
                raise ValueError("chat template: it does not show the content of messages[0]")
            return start
        before = self._given.until(index)
        prompt = self._template.render(before, prompt=True).text
        if self.text.startswith(prompt):
            return len(prompt)
        history = self._template.render(before).text
        if self.text.startswith(history):
            self.text = self._continued(index, prompt, history)
            return len(prompt)
        more = any(one.get("role") == "assistant" for one in self._given.messages[index + 1 :])
        raise ValueError(
            f"chat template: it renders the messages before messages[{index}] differently when "
            f"more follow, so training and generation would not agree{LAST if more else REWRITE}"
        )

    def _continued(self, index: int, prompt: str, history: str) -> str:
        """The text with the last answer after a prompt that begins it, as generation would write.

        Some prompts end with <think>, and the template removes the reasoning of past answers.
        """
        given, text = self._given, self.text
        start = self._place(index, end=False)
        # The content may begin as the rest of the prompt does.
        opened, shown = prompt[len(history) :], text[len(history) : start]
        differ = (n for n, (a, b) in enumerate(zip(opened, shown, strict=False)) if a != b)
        missing = opened[next(differ, len(shown)) :]
        content = (given.messages[index].get("content") or "").lstrip()
        end = self._place(index, end=True)
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

    def _content_end(self, index: int, letters: bool) -> int:
        """Where the content of an answer ends, before which there is no end of its turn.

        Reasoning may come first, with an end of its own. Most answers need no second rendering.
        """
        message, text, start = self._given.messages[index], self.text, self._starts[index]
        content = (message.get("content") or "").strip()
        if not letters:
            if not content:
                return start
            begin = next((n for n in range(start, len(text)) if not text[n].isspace()), start)
            if message.keys() <= {"role", "content"} and text.startswith(content, begin):
                return begin + len(content)
        return self._place(index, end=True) or start

    def _is_before_next(self, place: int, index: int) -> bool:
        """Whether a place is before the content of the message after `index`."""
        messages, start = self._given.messages, self._starts[index]
        for following in range(index + 1, len(messages)):
            content = (messages[following].get("content") or "").strip()
            found = self.text.find(content, start) if content else -1
            if found >= 0 and place < self._plain(found):
                return True  # the content is there or further on
            end = self._place(following, end=True)
            if end is not None:
                return place < self._plain(end)
        return index + 1 == len(messages)  # otherwise what follows may be learned

    def _place(self, index: int, end: bool) -> int | None:
        """Where the content of a message starts or ends; None: it is not shown."""
        return self._template.place(self._given, self.text, index, end)

    def _plain(self, place: int) -> int:
        return self._given.plain(self.text, place)
