"""Dialogues of task generators: questions and their answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from culm.seed import keyed
from culm.source import open_source
from culm.source.remote import File
from culm.task.file_task import FileTask, notes_of
from culm.task.interactive import dialogue
from culm.task.task import Task


@dataclass(frozen=True)
class TaskSource:
    """Training questions of random tasks, 1 to `turns` of them per dialogue; an interactive task
    may take several turns for one. A question with tools or a system message starts a dialogue.

    questions: how many in total. Reinforcement learning with the same seed asks other questions.
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

    @property
    def left_out(self) -> Mapping[str, int]:
        return notes_of(self.tasks)

    @property
    def files(self) -> Sequence[File]:
        paths = [p for task in self.tasks if isinstance(task, FileTask) for p in task.paths]
        return [f for path in paths for f in open_source(path, setting="tasks.path").files]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rng = keyed(self.seed, "dialogues")
        numbers = [count() for _ in self.tasks]  # each task asks its questions in their order
        left = self.questions
        while left:
            turns = min(rng.randint(1, self.turns), left)
            chosen = [rng.randrange(len(self.tasks)) for _ in range(turns)]
            yield from joined(
                self._asked(self.tasks[which], next(numbers[which])) for which in chosen
            )
            left -= turns

    def _asked(self, task: Task, number: int) -> dict[str, Any]:
        question = task.question("train", number, self.seed)
        tools = {"tools": list(question.tools)} if question.tools else {}
        return {"messages": dialogue(task, question), **tools}


def joined(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Dialogues as one; those with tools or a system message of their own stay separate."""
    found: list[dict[str, Any]] = []
    bare = False  # whether the last one can be continued
    for record in records:
        before, bare = bare, "tools" not in record and record["messages"][0]["role"] != "system"
        if before and bare:
            found[-1]["messages"] += record["messages"]
        else:
            found.append(record)
    return found
