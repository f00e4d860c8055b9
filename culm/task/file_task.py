"""Tasks whose questions are the records of a file."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

from pydantic import NonNegativeInt

from culm.config import Config, SettingError
from culm.seed import keyed
from culm.source import open_source
from culm.source.record import Record
from culm.source.source import LeftOutOnly, found_in
from culm.task.task import Option, Question, Split, Task, split_of

SEPARATOR = "\n\n"  # between the examples of a prompt


class Asked(NamedTuple):
    """The questions of a file in their order; notes: counts of what was left out or not used."""

    questions: list[Question]
    notes: Counter[str]


class FileTask(Config):
    """Every question of a split comes once before any repeats.

    name: in the results.

    path: JSON, JSONL or Parquet, also compressed, a folder of them, or a dataset of the hub.

    split: what its questions are for: test, train, or both: then one in eight is a test question,
    chosen by hash, so no question changes its split when the file grows.

    shots: examples before each question, with their answers. examples: the file that they come
    from; otherwise the questions' own, of which a question is never its own example.
    """

    kind: str
    name: str
    path: str
    split: Literal["both", "train", "test"] = "test"
    shots: NonNegativeInt = 0
    examples: str | None = None

    @abstractmethod
    def read(self, record: Record) -> Iterator[Question]:
        """The questions of a record, without examples.

        Raises:
            LeftOut: the record is counted and left out.
            ValueError: it is refused.
        """

    @abstractmethod
    def score(self, question: Question, reply: str) -> float:
        """As `Task.score`."""

    def question(self, split: Split, index: int, seed: int) -> Question:
        """Question `index` of a split, from the start again after the last one.

        Raises:
            SettingError: the file cannot be read, or has no question for the split.
        """
        known = self.asked(split)
        if not known:
            raise SettingError(
                f"{self.path}: none of its questions belongs to the {split} split; add more"
            )
        epoch, place = divmod(index, len(known))
        return known[_order(len(known), seed, self.name, split, epoch)[place]]

    @property
    def paths(self) -> tuple[str, ...]:
        """All that is read."""
        return (self.path,) if self.examples is None else (self.path, self.examples)

    def named_files(self) -> Mapping[str, Sequence[str]]:
        """For each setting that names a file: names, without their endings, of which it has one
        where a suite is read from a folder.
        """
        return {"path": (self.name,)}

    def asked(self, split: Split) -> Sequence[Question]:
        """The questions of a split, in the order of the file."""
        return self._splits[split]

    @property
    def notes(self) -> Counter[str]:
        """Counts of records that are left out and of keys that are not used, by a phrase."""
        own = self._asked.notes
        return own + self._examples.notes if self.shots and self.examples is not None else own

    @cached_property
    def _asked(self) -> Asked:
        return self._read_file(self.path)

    @cached_property
    def _splits(self) -> dict[Split, list[Question]]:
        found: dict[Split, list[Question]] = {"train": [], "test": []}
        for number, question in enumerate(self._asked.questions):
            split = split_of(question.prompt) if self.split == "both" else self.split
            found[split].append(self.with_examples(question, number))
        return found

    def with_examples(self, question: Question, number: int) -> Question:
        """The same with examples before it. number: its place in the file."""
        if not self.shots:
            return question
        own = self.examples is None
        known = self._asked.questions if own else self._examples.questions
        places = [place for place in range(len(known)) if not own or place != number]
        if len(places) < self.shots:
            raise SettingError(
                f"tasks: {self.name} has shots={self.shots} and {len(places)} examples; give more"
            )
        # Each question has its own (as CORE has them), unless a file is there for them alone.
        chosen = keyed(number, "examples").sample(places, self.shots) if own else places
        examples = [known[place] for place in chosen[: self.shots]]
        if question.options or question.plain:
            return after(question, "".join(shown(one) + SEPARATOR for one in examples))
        turns = [
            {"role": role, "content": text}
            for one in examples
            for role, text in (("user", one.prompt), ("assistant", one.reply))
        ]
        return replace(question, before=(*turns, *question.before))

    @cached_property
    def _examples(self) -> Asked:
        assert self.examples is not None
        return self._read_file(self.examples)

    def _read_file(self, path: str) -> Asked:
        skipped = LeftOutOnly()
        asked = Asked([], skipped.counts)
        source = open_source(path, setting="tasks.path")
        asked.notes.update(source.left_out)
        for record, questions in found_in(source, self.read, skipped):
            asked.notes.update(self.not_read(record))
            asked.questions.extend(questions)
        return asked

    def not_read(self, record: Record) -> list[str]:
        """What of a record is not used, as phrases to count; benchmarks have more than is read."""
        return []


def shown(question: Question) -> str:
    """A question with its right answer, as an example in a text."""
    if question.options:
        return "".join(question.options[question.right])
    space = "" if question.prompt[-1:].isspace() else " "
    return f"{question.prompt}{space}{question.reply}"


def after(question: Question, text: str) -> Question:
    """The same after a text."""
    options = tuple(Option(text + one.context, one.continuation) for one in question.options)
    return replace(question, prompt=text + question.prompt, options=options)


def notes_of(tasks: Sequence[Task]) -> Counter[str]:
    """What the files of all tasks bring that is left out or not used."""
    found = Counter[str]()
    for task in tasks:
        if isinstance(task, FileTask):
            found.update(task.notes)
    return found


@lru_cache(maxsize=8)
def _order(count: int, seed: int, *purpose: str | int) -> list[int]:
    return keyed(seed, *purpose).sample(range(count), count)
