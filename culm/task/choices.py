"""Multiple choice: which answer is the most likely one after the question?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from culm.source.record import Record
from culm.task.choice_records import LETTERS, Choice, choice_of
from culm.task.file_task import FileTask, after
from culm.task.task import Option, Question

PART = re.compile(r"\{(question|context|choices)\}")
LETTERED = "{question}\n{choices}\nAnswer:"


class Choices(FileTask):
    """Benchmarks such as ARC, HellaSwag, PIQA, WinoGrande, BoolQ, OpenBookQA, SIQA, SciQ, COPA and
    MMLU, in the form of their records, of which docs/concepts/evaluation.md has a table.

    form: what comes before each choice, with {question}, {context} and, in a line each, {choices};
    otherwise the benchmark's usual one. letters: whether the choices are listed, and the answers
    are their letters; otherwise as usual.

    by: what decides: sum, the log-probability of an answer; tokens or bytes, that by its length.
    """

    kind: Literal["choices"] = "choices"
    form: str | None = None
    letters: bool | None = None
    by: Literal["sum", "tokens", "bytes"] = "bytes"

    def read(self, record: Record) -> Iterator[Question]:
        choice = choice_of(record)
        if choice.options and not (self.form is None and self.letters is None):
            raise ValueError(
                "form, letters: its choices stand in texts of their own, which have no other form"
            )
        options = choice.options or self._options(choice)
        answer = choice.choices[choice.right]
        context = options[choice.right].context
        usual = self.form is None and self.letters is None
        yield Question(
            context, answer, options=options, right=choice.right, by=self.by,
            fields={"heading": choice.heading if usual else ""},
        )  # fmt: skip

    def with_examples(self, question: Question, number: int) -> Question:
        """As `FileTask.with_examples`, with the heading of its benchmark before all."""
        return after(super().with_examples(question, number), question.fields["heading"])

    def _options(self, choice: Choice) -> tuple[Option, ...]:
        letters = choice.letters if self.letters is None else self.letters
        form = self.form or (LETTERED if letters else choice.prompt)
        if letters and len(choice.choices) > len(LETTERS):
            raise ValueError(f"letters: it has {len(choice.choices)} choices, more than letters")
        listed = "\n".join(f"{a}. {text}" for a, text in zip(LETTERS, choice.choices, strict=False))
        parts = {"question": choice.question, "context": choice.context, "choices": listed}
        form = PART.sub(lambda found: str(parts[found[1]]), form)
        answers = LETTERS[: len(choice.choices)] if letters else choice.choices
        return tuple(Option(form, f" {str(answer).strip()}") for answer in answers)

    def score(self, question: Question, reply: str) -> float:
        """Whether a reply, such as the option that was chosen, is the right answer."""
        return float(reply.strip() == question.answer.strip())
