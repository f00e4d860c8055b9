"""Dialogues of task generators: questions and their answers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from culm.task.task import Task


@dataclass(frozen=True)
class TaskSource:
    """So many training questions, each of a random task, 1 to `turns` of them in a dialogue.

    Reinforcement learning, with the same seed, asks others.
    """

    tasks: Sequence[Task]
    questions: int
    turns: int
    seed: int

    @property
    def name(self) -> str:
        return "tasks " + ", ".join(task.name for task in self.tasks)

    @property
    def size(self) -> int | None:
        return None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        chance = random.Random(f"{self.seed}/dialogues")
        first = 0
        while first < self.questions:
            last = min(first + chance.randint(1, self.turns), self.questions)
            asked = [self._turn(chance.choice(self.tasks), index) for index in range(first, last)]
            yield {"messages": [message for turn in asked for message in turn]}
            first = last

    def _turn(self, task: Task, index: int) -> tuple[dict[str, str], dict[str, str]]:
        asked = task.question("train", index, self.seed)
        return (
            {"role": "user", "content": asked.prompt},
            {"role": "assistant", "content": asked.reply},
        )
