"""Answers to questions, and how good they are: what the formats of such records share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from culm.data.example import Dialogue, Example, RecordFormat
from culm.tokenizer.tokenizer import Tokenizer


class JudgedFormat(RecordFormat):
    """Base of the formats of answers that are good or bad: the last answer of each dialogue is
    what an objective reads.
    """

    def encode(self, contents: Sequence[Dialogue], tokenizer: Tokenizer) -> Iterator[Example]:
        for one in contents:
            yield last_answer(one, tokenizer)


def last_answer(dialogue: Dialogue, tokenizer: Tokenizer) -> Example:
    """A dialogue of which the last answer is learned, with which it ends."""
    encoded = tokenizer.chat.encode(dialogue.messages, "last", dialogue.tools)
    return Example(*encoded).until_its_end()
