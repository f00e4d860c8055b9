"""Several answers to the same question, each with a score or a rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from culm.batch import Reads
from culm.data.example import Dialogue, numbers_of
from culm.data.format.judged import JudgedFormat
from culm.data.format.messages import (
    Message,
    answer_of,
    asked_in,
    question_of,
    tools_of,
    with_answer,
)
from culm.source.record import LeftOut, shape_of

LISTS = ("completions", "responses")


class RankingFormat(JudgedFormat):
    """answers: the field with a list of answers; `completions` or `responses` unless given. prompt:
    the field of the question.

    A field `scores` says how good each answer is, or `ranks` its place, of which 1 is the best.
    Answers are strings, messages, or complete dialogues.
    """

    gives: ClassVar[Reads] = "rankings"
    group: ClassVar[int] = 0
    kind: Literal["ranking"] = "ranking"
    prompt: str = "prompt"
    answers: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return ("score", "place")

    def numbers(self, record: dict[str, Any]) -> Sequence[tuple[float, ...]]:
        """The score of each answer, and its place in the record, from 0."""
        return [(score, float(place)) for place, score in enumerate(scores_of(record))]

    def contents(self, record: dict[str, Any]) -> Iterator[Dialogue]:
        """A dialogue for each answer, in the order of the record.

        Raises:
            LeftOut: no answer is better than another one, two are equal, or they answer different
                questions.
        """
        answers, tools = self._dialogues(record), tools_of(record)
        scores = scores_of(record)
        if len(scores) != len(answers):
            raise ValueError(f"it has {len(answers)} answers and {len(scores)} scores or ranks")
        if len(set(scores)) < 2:
            raise LeftOut("rankings have no answer that is better than another, and are left out")
        if any(answer in answers[:number] for number, answer in enumerate(answers)):
            raise LeftOut("rankings have the same answer twice and are left out")
        if any(asked_in(answer) != asked_in(answers[0]) for answer in answers):
            raise LeftOut("rankings have answers to different questions and are left out")
        for answer in answers:
            yield Dialogue(answer, tools)

    def _dialogues(self, record: dict[str, Any]) -> list[list[Message]]:
        """The question with each answer."""
        question = question_of(record, self.prompt) or None
        found = [with_answer(record, question, answer) for answer in self._answers(record)]
        if (question is None and not found) or None in found:
            raise ValueError(f"no question in {self.prompt!r}; {shape_of(record)}")
        return [dialogue for dialogue in found if dialogue]

    def _answers(self, record: dict[str, Any]) -> list[list[Message]]:
        known = LISTS if self.answers is None else (self.answers,)
        field = next((name for name in known if isinstance(dict.get(record, name), list)), None)
        if field is None:
            raise ValueError(f"no list of answers in {' or '.join(known)}; {shape_of(record)}")
        found = [answer_of(value) for value in record[field]]
        if not all(found):
            raise ValueError(f"{field!r} has something other than a text or messages in it")
        return [answer for answer in found if answer]


def scores_of(record: dict[str, Any]) -> list[float]:
    """Of each answer; the higher, the better."""
    if dict.get(record, "scores") is None and dict.get(record, "ranks") is not None:
        return [-rank for rank in numbers_of(record, "ranks")]
    return numbers_of(record, "scores")
