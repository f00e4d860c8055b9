"""Text to the engine and back.

A question becomes a request. Token ids become text as they arrive, in complete characters and
without stop strings.
"""

from __future__ import annotations

from collections.abc import Sequence

from culm.config import SettingError
from culm.engine.request import Event, Request
from culm.engine.sampling import Sampling
from culm.exits import GAVE_NAN
from culm.task.task import Question
from culm.text.ids import text_ids
from culm.tokenizer.decoder import Decoder
from culm.tokenizer.tokenizer import Tokenizer


class NoRoom(SettingError):
    """A question leaves no room for an answer in the model's context."""


def request_of(
    question: Question, tokenizer: Tokenizer, max_tokens: int, context: int, sampling: Sampling
) -> Request:
    """A request for the reply to a question: `max_tokens`, or fewer where the context ends.

    Raises:
        NoRoom: the question alone fills the context.
    """
    prompt = tuple(prompt_ids(question, tokenizer))
    left = context - len(prompt)
    if left < 1:
        raise NoRoom(
            f"tasks: the question {question.prompt[:40]!r} has {len(prompt)} tokens, which leaves "
            f"no room for an answer in the model's context of {context}"
        )
    return Request(prompt, min(max_tokens, left), sampling, tokenizer.stop_ids)


def prompt_ids(question: Question, tokenizer: Tokenizer) -> list[int]:
    """A question as the model reads it: a text to continue, or the messages of a dialogue."""
    if question.plain:
        return text_ids(tokenizer, question.prompt)
    return tokenizer.chat.prompt(question.messages, question.tools or None)


class Reply:
    """The text of one generation.

    It holds back an incomplete character, and the longest end of the text that may still become a
    stop string:

        stops = ["\\n\\nUser"]      "fine."  "\\n"  "\\nUs"  "ers say"
        shown                      "fine."   ""     ""     "\\n\\nUsers say"

    `stopped`: a stop string was found; the text ends before it.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        if any(not stop for stop in stops):
            raise ValueError("stop: a stop string is empty")
        self._tokenizer, self._decoder = tokenizer, Decoder(tokenizer)
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    @property
    def held(self) -> int:
        """Characters that are held back as the possible start of a stop string."""
        return len(self._held)

    @property
    def complete(self) -> bool:
        """Whether the text of all tokens so far was given out."""
        return not (self.stopped or self._held or self._decoder.unfinished)

    def read(self, event: Event) -> str:
        """The text that can be shown now; after the last event, all of the rest.

        Raises:
            ValueError: the model gave NaN.
        """
        if event.finish == "invalid":
            raise ValueError(GAVE_NAN)
        # A stop token is not part of the text, even if it has letters.
        text = "" if event.finish == "stop" else self.push(event.token)
        return text + self.finish() if event.finish else text

    def push(self, token: int) -> str:
        """The text that can be shown after one more token."""
        known = token < self._tokenizer.vocabulary  # a model may have a padded vocabulary
        return self._show(self._decoder.push(token) if known else "")

    def finish(self) -> str:
        """The text that was held back, when no more tokens come."""
        return self._show(self._decoder.flush(), last=True)

    def _show(self, text: str, last: bool = False) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        met = [place for place in map(text.find, self._stops) if place >= 0]
        if met:
            self.stopped, self._held = True, ""
            return text[: min(met)]
        keep = 0 if last else max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that `text` ends with."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
