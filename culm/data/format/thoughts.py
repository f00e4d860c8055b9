"""A question, the steps to its answer, and the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from culm.batch import Reads
from culm.data.example import Dialogue, Example, RecordFormat
from culm.source.record import of_kind, shape_of
from culm.tokenizer.tokenizer import Tokenizer


class ThoughtsFormat(RecordFormat):
    """question, steps, answer: the fields, as in ProsQA. Dialogues of tasks are read too: there the
    steps are before a colon. separator: what stands between these steps.

    Each part ends with a line break, and its last token is marked as learned, so that the parts
    can be found in a row; an objective of thoughts decides what is learned of them.
    """

    gives: ClassVar[Reads] = "thoughts"
    kind: Literal["thoughts"] = "thoughts"
    question: str = "question"
    steps: str = "steps"
    answer: str = "answer"
    separator: str = "; "

    def check(self, tokenizer: Tokenizer) -> None:
        """Any tokenizer will do."""

    def contents(self, record: dict[str, Any]) -> Iterator[Dialogue]:
        question, steps, answer = self._parts(record)
        said = [{"role": "assistant", "content": text} for text in (*steps, answer)]
        yield Dialogue([{"role": "user", "content": question}, *said])

    def encode(self, contents: Sequence[Dialogue], tokenizer: Tokenizer) -> Iterator[Example]:
        for messages, _ in contents:
            parts = [part_of(str(one["content"]), tokenizer) for one in messages]
            parts[0][:0] = tokenizer.start
            parts[-1].append(tokenizer.end_of_text)
            tokens = [token for part in parts for token in part]
            learned = [at == len(part) - 1 for part in parts for at in range(len(part))]
            yield Example(tokens, learned)

    def _parts(self, record: dict[str, Any]) -> tuple[str, list[str], str]:
        if "messages" in record:
            asked, reply = (str(one["content"]) for one in record["messages"][-2:])
            working, _, answer = reply.rpartition(": ")
            return asked, working.split(self.separator) if working else [], answer
        question, answer = (of_kind(record, key, str) for key in (self.question, self.answer))
        steps = of_kind(record, self.steps, list)
        texts = steps is not None and all(isinstance(one, str) for one in steps)
        if question is None or answer is None or not texts:
            raise ValueError(
                f"no question in {self.question!r}, list of steps in {self.steps!r} and answer in "
                f"{self.answer!r}; {shape_of(record)}"
            )
        return question, steps, answer


def part_of(text: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a question, a step or an answer."""
    return tokenizer.encode(f"{text}\n")
