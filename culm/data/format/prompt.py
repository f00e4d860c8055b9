"""Questions with a known answer, for fine-tuning; `culm.task.prompts` asks and grades them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from culm.data.example import Dialogue, Example, RecordFormat
from culm.data.format.messages import refuse_label
from culm.task.prompts import question_in
from culm.tokenizer.tokenizer import Tokenizer


class PromptFormat(RecordFormat):
    """prompt, answer: the fields with the question and its answer."""

    kind: Literal["prompt"] = "prompt"
    prompt: str = "prompt"
    answer: str = "answer"

    def contents(self, record: dict[str, Any]) -> Iterator[Dialogue]:
        """The question and its answer; a number becomes text."""
        refuse_label(record)
        question, answer = question_in(record, self.prompt, self.answer)
        asked = {"role": "user", "content": question}
        yield Dialogue([asked, {"role": "assistant", "content": answer}])

    def encode(self, contents: Sequence[Dialogue], tokenizer: Tokenizer) -> Iterator[Example]:
        for messages, _ in contents:
            yield Example(*tokenizer.chat.encode(messages))
