"""Questions with a known answer, for fine-tuning; `culm.task.prompts` asks and grades them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from culm.data.example import Example, RecordFormat, shape_of
from culm.data.format.messages import Message
from culm.tokenizer.tokenizer import Tokenizer


class PromptFormat(RecordFormat):
    """prompt, answer: the fields with the question and its answer."""

    kind: Literal["prompt"] = "prompt"
    prompt: str = "prompt"
    answer: str = "answer"

    def contents(self, record: dict[str, Any]) -> Iterator[list[Message]]:
        """The question and its answer; a number becomes text."""
        for key in (self.prompt, self.answer):
            if not isinstance(record.get(key), str | int | float):
                raise ValueError(f"no text or number in {key!r}; {shape_of(record)}")
        question, answer = str(record[self.prompt]), str(record[self.answer])
        yield [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def encode(self, contents: Sequence[list[Message]], tokenizer: Tokenizer) -> Iterator[Example]:
        for messages in contents:
            yield Example(*tokenizer.chat.encode(messages))
