"""Questions with known answers from files of records with a prompt and an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from culm.source.record import LeftOut, Record, fields_of, not_used, written
from culm.task.file_task import FileTask
from culm.task.grade import Grade, grade
from culm.task.task import Question

INCOMPLETE = "records have an empty prompt or answer and are left out"


class Prompts(FileTask):
    """Questions and answers of any file, as messages or as texts to continue.

    prompt, answer: names of the fields, text or numbers; other fields are for rewards that are
    functions.

    form: what the model reads, with {prompt} in the place of the question. plain: whether it is a
    text to continue, not a message in the chat template. stops: texts that end a reply; of a plain
    one also an empty line, if none are given.

    grade: how a reply is compared with the answer: exact; normalized (SQuAD: without case,
    articles and punctuation); number (GSM8K: the last number); math (MATH: what is in the last
    box); contains; f1 (of words).
    """

    kind: Literal["prompts"] = "prompts"
    name: str = "prompts"
    split: Literal["both", "train", "test"] = "both"
    prompt: str = "prompt"
    answer: str = "answer"
    form: str = "{prompt}"
    plain: bool = False
    stops: tuple[str, ...] = ()
    grade: Grade = "exact"

    def read(self, record: Record) -> Iterator[Question]:
        question, answer = question_in(record, self.prompt, self.answer)
        others = {name: one for name, one in fields_of(record).items() if name != self.prompt}
        prompt = self.form.replace("{prompt}", question)
        stops = self.stops or (("\n\n",) if self.plain else ())
        yield Question(prompt, answer.strip(), fields=others, plain=self.plain, stops=stops)

    def score(self, question: Question, reply: str) -> float:
        return grade(self.grade, question.answer, reply)

    def not_read(self, record: Record) -> list[str]:
        return not_used("records", record.unread, "only a reward function reads")


def question_in(record: dict[str, Any], prompt: str, answer: str) -> tuple[str, str]:
    """The texts of two fields, of which a number is one.

    Raises:
        LeftOut: one of them is empty.
        ValueError: one of them holds something else.
    """
    found = written(record, prompt), written(record, answer)
    if not all(map(str.strip, found)):
        raise LeftOut(INCOMPLETE)
    return found
