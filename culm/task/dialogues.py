"""Requests without a right answer, in one turn or several: what a judge or reward model rates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from culm.config import SettingError
from culm.source.record import Record, fields_of, not_used
from culm.task.file_task import FileTask
from culm.task.task import Question


class Dialogues(FileTask):
    """Requests in the form of MT-bench, {question_id, category, turns}; a record without turns has
    one, its prompt, instruction or question. Measured by `chat`, since no reply is right or wrong.
    """

    kind: Literal["dialogues"] = "dialogues"
    name: str = "dialogues"

    def read(self, record: Record) -> Iterator[Question]:
        names = ("prompt", "instruction", "question")
        name = next((name for name in names if name in record), None)
        turns = record["turns"] if "turns" in record else [record[name]] if name else []
        if not turns or not all(isinstance(one, str) and one.strip() for one in turns):
            raise ValueError("it has no turns, which are a list of texts, and no prompt")
        first, *rest = turns
        fields = {**fields_of(record), "category": record.get("category")}
        yield Question(first, "", fields=fields, further=tuple(rest))

    def score(self, question: Question, reply: str) -> float:
        raise SettingError(
            f"tasks: {self.name} has no right answers; give it to a measure of the kind chat"
        )

    def not_read(self, record: Record) -> list[str]:
        return not_used("dialogues", sorted(record.unread - {"question_id"}))
