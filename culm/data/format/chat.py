"""Dialogues: the assistant's turns are learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from culm.data.example import Dialogue, Example, RecordFormat
from culm.data.format.messages import dialogues_of, refuse_label
from culm.tokenizer.tokenizer import Tokenizer


class ChatFormat(RecordFormat):
    """turns: learn from all turns of the assistant, or from the last one only."""

    kind: Literal["chat"] = "chat"
    turns: Literal["all", "last"] = "all"

    def contents(self, record: dict[str, Any]) -> Iterator[Dialogue]:
        refuse_label(record)
        yield from dialogues_of(record)

    def encode(self, contents: Sequence[Dialogue], tokenizer: Tokenizer) -> Iterator[Example]:
        for messages, tools in contents:
            yield Example(*tokenizer.chat.encode(messages, self.turns, tools))
