"""Dialogues of task generators: questions and their answers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from culm.task.task import Task

SEED = 0  # of the questions; other seeds are left to reinforcement learning and evaluation


@dataclass(frozen=True)
class TaskSource:
    """So many training questions, each of a random task, 1 to `turns` of them in a dialogue."""

    tasks: Sequence[Task]
    questions: int
    turns: int = 1

    @property
    def name(self) -> str:
        return "tasks " + ", ".join(task.name for task in self.tasks)

    @property
    def size(self) -> int | None:
        return None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        chance = random.Random(f"{SEED}/dialogues")
        first = 0
        while first < self.questions:
            last = min(first + chance.randint(1, self.turns), self.questions)
            asked = [_turn(chance.choice(self.tasks), index) for index in range(first, last)]
            yield {"messages": [message for turn in asked for message in turn]}
            first = last


def _turn(task: Task, index: int) -> tuple[dict[str, str], dict[str, str]]:
    asked = task.question("train", index, SEED)
    return (
        {"role": "user", "content": asked.prompt},
        {"role": "assistant", "content": asked.reply},
    )
