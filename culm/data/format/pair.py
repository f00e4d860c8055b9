"""A better and a worse answer to the same question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from culm.batch import Reads
from culm.data.example import Example, RecordFormat, number_of, shape_of
from culm.data.format.messages import Message, answer_of, question_of, transcript
from culm.tokenizer.tokenizer import Tokenizer


class PairFormat(RecordFormat):
    """chosen, rejected: the fields of the answers; prompt: the field of the question.

    margin: the field with the margin by which the chosen answer is better, for reward models.
    Answers are strings, messages, or complete dialogues, whose last turns are compared.
    """

    gives: ClassVar[Reads] = "pairs"
    group: ClassVar[int] = 2
    kind: Literal["pair"] = "pair"
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    margin: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return () if self.margin is None else ("margin",)

    def numbers(self, record: dict[str, Any]) -> tuple[float, ...]:
        return () if self.margin is None else (number_of(record, self.margin),)

    def contents(self, record: dict[str, Any]) -> Iterator[list[Message]]:
        """The dialogue with the chosen answer, then the one with the rejected answer."""
        for key in (self.chosen, self.rejected):
            yield self._dialogue(record, key)

    def encode(self, contents: Sequence[list[Message]], tokenizer: Tokenizer) -> Iterator[Example]:
        for messages in contents:
            yield Example(*tokenizer.chat.encode(messages, "last"))

    def _dialogue(self, record: dict[str, Any], key: str) -> list[Message]:
        answer = answer_of(record.get(key))
        if answer is None:
            raise ValueError(f"no answer in {key!r}; {shape_of(record)}")
        if len(answer) > 1:  # a dialogue that includes the question
            return answer
        renamed = {**record, "prompt": record[self.prompt]} if self.prompt in record else record
        question = question_of(renamed)
        whole = transcript(answer[0]["content"]) if question is None else None
        if question is None and whole is None:
            raise ValueError(f"no question in {self.prompt!r}; {shape_of(record)}")
        return [*question, *answer] if question is not None else list(whole or ())
