"""Questions with known answers from files of records with a prompt and an answer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Literal

from culm.config import Config, SettingError
from culm.seed import keyed
from culm.source import open_source
from culm.source.record import Record, shape_of
from culm.source.source import found_in
from culm.task.task import Question, Split, exact, split_of


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
        known = self._questions[split]
        if not known:
            raise SettingError(
                f"{self.path}: none of its prompts belongs to the {split} split; add more"
            )
        epoch, place = divmod(index, len(known))
        return known[_order(len(known), seed, self.name, split, epoch)[place]]

    def asked(self, split: Split) -> list[Question]:
        """The questions of a split, in the order of the file."""
        return self._questions[split]

    def score(self, question: Question, reply: str) -> float:
        return exact(question.answer, reply)

    @cached_property
    def _questions(self) -> dict[Split, list[Question]]:
        found: dict[Split, list[Question]] = {"train": [], "test": []}
        for _, questions in found_in(open_source(self.path, setting="tasks.path"), self._read):
            for question in questions:
                found[split_of(question.prompt)].append(question)
        return found

    def _read(self, record: Record) -> Iterator[Question]:
        for key in (self.prompt, self.answer):
            if not isinstance(record.get(key), str | int | float):
                raise ValueError(f"no text or number in {key!r}; {shape_of(record)}")
        others = {name: value for name, value in record.items() if name != self.prompt}
        answer = str(record[self.answer]).strip()
        yield Question(str(record[self.prompt]), answer, fields=others)


@lru_cache(maxsize=8)
def _order(count: int, seed: int, *purpose: str | int) -> list[int]:
    return keyed(seed, *purpose).sample(range(count), count)
