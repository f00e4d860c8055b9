"""Dialogues: the assistant's turns are learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from culm.data.example import Example, RecordFormat
from culm.data.format.messages import dialogue_of
from culm.tokenizer.tokenizer import Tokenizer


class ChatFormat(RecordFormat):
    """turns: learn from all turns of the assistant, or from the last one only."""

    kind: Literal["chat"] = "chat"
    turns: Literal["all", "last"] = "all"

    def examples(self, record: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Example]:
        yield Example(*tokenizer.chat.encode(dialogue_of(record), self.turns))
