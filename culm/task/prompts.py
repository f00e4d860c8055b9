"""Questions with known answers from files of records with a prompt and an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple

from culm.config import Config, SettingError
from culm.seed import keyed
from culm.source import open_source
from culm.source.record import LeftOut, Record, fields_of, not_used, written
from culm.source.source import found_in
from culm.task.task import Question, Split, Task, exact, split_of

INCOMPLETE = "records have an empty prompt or answer and are left out"


class Asked(NamedTuple):
    """The questions of a file by split; notes: counts of what was left out or not used."""

    questions: dict[Split, list[Question]]
    notes: Counter[str]


class Prompts(Config):
    """Records of a file or folder; every question of a split comes once before any repeats.

    name: in the results.

    path: JSON, JSONL or Parquet, also compressed. prompt, answer: names of the fields, text or
    numbers; other fields are for rewards that are functions. One prompt in eight is a test
    question, chosen by hash, so no question changes its split when the file grows.
    """

    kind: Literal["prompts"] = "prompts"
    name: str = "prompts"
    path: str
    prompt: str = "prompt"
    answer: str = "answer"

    def question(self, split: Split, index: int, seed: int) -> Question:
        """Question `index` of a split, from the start again after the last one.

        Raises:
            SettingError: the file cannot be read, or has no question for the split.
        """
        known = self._asked.questions[split]
        if not known:
            raise SettingError(
                f"{self.path}: none of its prompts belongs to the {split} split; add more"
            )
        epoch, place = divmod(index, len(known))
        return known[_order(len(known), seed, self.name, split, epoch)[place]]

    def asked(self, split: Split) -> list[Question]:
        """The questions of a split, in the order of the file."""
        return self._asked.questions[split]

    def score(self, question: Question, reply: str) -> float:
        return exact(question.answer, reply)

    @property
    def notes(self) -> Counter[str]:
        """Counts of records that are left out and of keys that are not used, by a phrase."""
        return self._asked.notes

    @cached_property
    def _asked(self) -> Asked:
        asked = Asked({"train": [], "test": []}, Counter())

        def skipped(error: ValueError) -> None:
            if not isinstance(error, LeftOut):
                raise SettingError(f"{error}; correct it")
            asked.notes[str(error)] += 1

        source = open_source(self.path, setting="tasks.path")
        asked.notes.update(source.left_out)
        for record, questions in found_in(source, self._read, skipped):
            unread = not_used("records", record.unread, "only a reward function reads")
            asked.notes.update(unread)
            for question in questions:
                asked.questions[split_of(question.prompt)].append(question)
        return asked

    def _read(self, record: Record) -> Iterator[Question]:
        question, answer = question_in(record, self.prompt, self.answer)
        others = {name: one for name, one in fields_of(record).items() if name != self.prompt}
        yield Question(question, answer.strip(), fields=others)


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


def notes_of(tasks: Sequence[Task]) -> Counter[str]:
    """What the files of all tasks bring that is left out or not used."""
    found = Counter[str]()
    for task in tasks:
        if isinstance(task, Prompts):
            found.update(task.notes)
    return found


@lru_cache(maxsize=8)
def _order(count: int, seed: int, *purpose: str | int) -> list[int]:
    return keyed(seed, *purpose).sample(range(count), count)
