"""Questions with known answers from a file: `{"prompt": ..., "answer": ...}` on each line."""

from __future__ import annotations

import json
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from culm.config import Config, SettingError
from culm.seed import keyed
from culm.task.task import Question, Split, exact, split_of


class Prompts(Config):
    """Records of a JSONL file; every question of a split comes once before any repeats.

    path: the file. prompt, answer: names of the fields, text or numbers. One prompt in eight is a
    test question, chosen by hash, so no question changes its split when the file grows.
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

    def score(self, question: Question, reply: str) -> float:
        return exact(question.answer, reply)

    @cached_property
    def _questions(self) -> dict[Split, list[Question]]:
        found: dict[Split, list[Question]] = {"train": [], "test": []}
        try:
            lines = Path(self.path).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"{self.path}: not readable as a file of prompts: {error}") from None
        for number, line in enumerate(lines, start=1):
            if line.strip():
                question = self._question(line, f"{self.path}: line {number}")
                found[split_of(question.prompt)].append(question)
        return found

    def _question(self, line: str, place: str) -> Question:
        try:
            record: Any = json.loads(line)
        except ValueError as error:
            raise SettingError(f"{place}: not readable as JSON: {error}") from None
        for key in (self.prompt, self.answer):
            if not isinstance(record, dict) or not isinstance(record.get(key), str | int | float):
                raise SettingError(f"{place}: no text or number in {key!r}")
        return Question(str(record[self.prompt]), str(record[self.answer]).strip())


@lru_cache(maxsize=8)
def _order(count: int, seed: int, *purpose: str | int) -> list[int]:
    return keyed(seed, *purpose).sample(range(count), count)
