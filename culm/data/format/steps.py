"""Answers in steps, each with a label: whether the answer is right so far."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, ClassVar, Literal

from culm.batch import Reads
from culm.data.example import Dialogue, Example, RecordFormat, numbers_of
from culm.data.format.judged import last_answer
from culm.data.format.messages import question_of, tools_of
from culm.source.record import LeftOut, shape_of
from culm.tokenizer.tokenizer import Tokenizer

LISTS = ("completions", "steps")


class StepsFormat(RecordFormat):
    """steps: the field with the list of steps; `completions` or `steps` unless given. labels: the
    field with a label for each: true or false, or a probability. prompt: the field of the question.

    separator: the text between two steps. A step is scored at its last token, which is that of the
    separator after it; the last step where the turn ends.
    """

    gives: ClassVar[Reads] = "steps"
    per: ClassVar[Literal["row", "token"]] = "token"
    kind: Literal["steps"] = "steps"
    prompt: str = "prompt"
    steps: str | None = None
    labels: str = "labels"
    separator: str = "\n"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("label",)

    def numbers(self, record: dict[str, Any]) -> Sequence[tuple[float, ...]]:
        """The label of each step."""
        labels = numbers_of(record, self.labels)
        if outside := [label for label in labels if not 0 <= label <= 1]:
            raise ValueError(
                f"the label {outside[0]:g} in {self.labels!r} is neither true nor false, nor a "
                "number from 0 to 1"
            )
        return [tuple(labels)]

    def contents(self, record: dict[str, Any]) -> Iterator[Dialogue]:
        """One dialogue; each step is a message of its own."""
        steps, question = self._steps(record), question_of(record, self.prompt)
        if not question:
            raise ValueError(f"no question in {self.prompt!r}; {shape_of(record)}")
        if question[-1]["role"] == "assistant":
            raise ValueError("its question ends with an answer, and so the steps have no beginning")
        if not steps:
            raise LeftOut("answers have no steps and are left out")
        [labels] = self.numbers(record)
        if len(labels) != len(steps):
            raise ValueError(f"it has {len(steps)} steps and {len(labels)} labels")
        said = [{"role": "assistant", "content": step} for step in steps]
        yield Dialogue([*question, *said], tools_of(record))

    def encode(self, contents: Sequence[Dialogue], tokenizer: Tokenizer) -> Iterator[Example]:
        for messages, tools in contents:
            first = len(messages)
            while messages[first - 1]["role"] == "assistant":
                first -= 1
            steps = [str(one["content"]) for one in messages[first:]]
            answer = {"role": "assistant", "content": self.separator.join(steps)}
            example = last_answer(Dialogue([*messages[:first], answer], tools), tokenizer)
            learned = [False] * len(example.tokens)
            for place in self._ends(example, steps, tokenizer):
                learned[place] = True
            yield Example(example.tokens, learned, example.unread, example.remarks)

    def _steps(self, record: dict[str, Any]) -> list[str]:
        known = LISTS if self.steps is None else (self.steps,)
        field = next((name for name in known if isinstance(dict.get(record, name), list)), None)
        if field is None:
            raise ValueError(f"no list of steps in {' or '.join(known)}; {shape_of(record)}")
        if not all(isinstance(step, str) and step.strip() for step in record[field]):
            raise ValueError(f"{field!r} has a step that is no text, or empty")
        steps = [step.removesuffix(self.separator) for step in record[field]]
        return [*steps[:-1], steps[-1].rstrip()] if steps else steps

    def _ends(self, example: Example, steps: Sequence[str], tokenizer: Tokenizer) -> list[int]:
        """The last token of each step, which may begin with white space of the answer."""
        first = example.learned.index(True)
        parts = [tokenizer.bytes_of(token) for token in example.tokens[first:]]
        text = b"".join(parts)
        written = self.separator.join(steps).encode()
        start = text.find(written.lstrip())
        if start < 0:
            raise ValueError(
                "the chat template or the tokenizer changes the text of the steps, so their ends "
                "cannot be found"
            )
        start -= len(written) - len(written.lstrip())
        stops = list(accumulate(map(len, parts)))
        sizes = (len(f"{step}{self.separator}".encode()) for step in steps[:-1])
        places = [bisect_right(stops, start + size) - 1 for size in accumulate(sizes)]
        ends = [first + place for place in places] + [len(example.tokens) - 1]
        if any(later <= end for end, later in zip([first - 1, *ends], ends, strict=False)):
            raise ValueError(
                "two steps end in one token; give data.format.separator a text that the tokenizer "
                "keeps as a token of its own"
            )
        return ends
