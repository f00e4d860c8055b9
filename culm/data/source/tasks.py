"""Dialogues of task generators: a question and its answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from culm.task.task import Task


@dataclass(frozen=True)
class TaskSource:
    """So many training questions of the tasks in turn; reinforcement learning draws others."""

    tasks: Sequence[Task]
    questions: int
    seed: int

    @property
    def name(self) -> str:
        return "tasks " + ", ".join(task.name for task in self.tasks)

    @property
    def size(self) -> int | None:
        return None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index in range(self.questions):
            asked = self.tasks[index % len(self.tasks)].question("train", index, self.seed)
            yield {
                "messages": [
                    {"role": "user", "content": asked.prompt},
                    {"role": "assistant", "content": asked.reply},
                ]
            }
