"""A better and a worse answer to the same question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from culm.data.example import Example, RecordFormat, shape_of
from culm.data.format.messages import Message, answer_of, question_of, transcript
from culm.tokenizer.tokenizer import Tokenizer


class PairFormat(RecordFormat):
    """chosen, rejected: the fields of the answers; prompt: the field of the question.

    Answers are strings, messages, or whole dialogues; the last turn of each is what is compared.
    """

    group: ClassVar[int] = 2
    kind: Literal["pair"] = "pair"
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"

    def examples(self, record: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Example]:
        """The chosen answer's, then the rejected one's."""
        for key in (self.chosen, self.rejected):
            yield Example(*tokenizer.chat.encode(self._dialogue(record, key), turns="last"))

    def _dialogue(self, record: dict[str, Any], key: str) -> list[Message]:
        answer = answer_of(record.get(key))
        if answer is None:
            raise ValueError(f"no answer in {key!r}; {shape_of(record)}")
        if len(answer) > 1:  # a whole dialogue, question and all
            return answer
        renamed = {**record, "prompt": record[self.prompt]} if self.prompt in record else record
        question = question_of(renamed)
        whole = transcript(answer[0]["content"]) if question is None else None
        if question is None and whole is None:
            raise ValueError(f"no question in {self.prompt!r}; {shape_of(record)}")
        return [*question, *answer] if question is not None else list(whole or ())
