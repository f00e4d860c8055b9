"""Dialogues: the assistant's turns are learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from culm.data.example import Example, RecordFormat
from culm.data.format.messages import Message, dialogue_of
from culm.tokenizer.tokenizer import Tokenizer


class ChatFormat(RecordFormat):
    """turns: learn from all turns of the assistant, or from the last one only."""

    kind: Literal["chat"] = "chat"
    turns: Literal["all", "last"] = "all"

    def contents(self, record: dict[str, Any]) -> Iterator[list[Message]]:
        yield dialogue_of(record)

    def encode(self, contents: Sequence[list[Message]], tokenizer: Tokenizer) -> Iterator[Example]:
        for messages in contents:
            yield Example(*tokenizer.chat.encode(messages, self.turns))
