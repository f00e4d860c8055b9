"""Questions with a known answer: what reinforcement learning asks and grades."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from culm.data.example import Example, RecordFormat, shape_of
from culm.tokenizer.tokenizer import Tokenizer


class PromptFormat(RecordFormat):
    """prompt, answer: the fields that hold them."""

    kind: Literal["prompt"] = "prompt"
    prompt: str = "prompt"
    answer: str = "answer"

    def question(self, record: dict[str, Any]) -> tuple[str, str]:
        """The question and its answer."""
        try:
            return str(record[self.prompt]), str(record[self.answer])
        except KeyError as error:
            raise ValueError(f"no {error.args[0]!r}; {shape_of(record)}") from None

    def examples(self, record: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Example]:
        """The question with its answer learned, as fine-tuning before RL needs it."""
        question, answer = self.question(record)
        messages = [("user", question), ("assistant", answer)]
        dialogue = [{"role": role, "content": content} for role, content in messages]
        yield Example(*tokenizer.chat.encode(dialogue))
