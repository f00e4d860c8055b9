"""What a model answers: a dialogue that starts with a prompt and may continue after each reply.

A task is the environment of one turn. One with tools or a game answers each reply with messages of
its own; these are read by the model and not learned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from culm.config import SettingError
from culm.data.notes import remarks_of
from culm.task.file_task import FileTask, notes_of
from culm.task.interactive import Interactive, followed
from culm.task.task import Question, Task, graded
from culm.tokenizer.message import Message

ASKED = 1000  # questions that tell one order from another
MEASURED = 200  # questions whose length is looked at before a run
TRIES = 1000  # questions in a row that may be too long
FAR = 1_000_003  # a prime: steps through all questions of a file, whatever their number


@dataclass(frozen=True)
class Turn:
    """What follows a reply. messages: what the model reads next; none: the dialogue is over."""

    messages: tuple[Message, ...] = ()


class Episode(Protocol):
    """One dialogue as it is played."""

    @property
    def prompt(self) -> Sequence[Message]:
        """The messages that the model answers first."""
        ...

    @property
    def fields(self) -> Mapping[str, Any]:
        """What else is known of it, such as the answer: for rewards that are functions."""
        ...

    def step(self, reply: str) -> Turn:
        """What follows a reply of the model."""
        ...

    def score(self) -> float:
        """0 to 1, once the dialogue is over; never raises, whatever the replies."""
        ...


class Environment(Protocol):
    """Episodes by number, without end: a pure function of their number and the seed."""

    def reset(self, index: int, seed: int) -> Episode:
        """The start of episode `index`."""
        ...

    def fingerprint(self, seed: int) -> str:
        """Of what the episodes of a seed depend on; no episode is started for it."""
        ...


Fits = Callable[[Sequence[Message]], bool]  # whether a prompt leaves room for an answer


@dataclass(frozen=True)
class Fitting:
    """Episodes whose prompts leave room for an answer: others are replaced, each by the next one
    that does, far away in the order.
    """

    environment: Environment
    fits: Fits

    def reset(self, index: int, seed: int) -> tuple[Episode, int]:
        """The start of episode `index`, and how many were too long for its place.

        Raises:
            SettingError: many in a row are too long.
        """
        for skipped in range(TRIES):
            episode = self.environment.reset(index + skipped * FAR, seed)
            if self.fits(episode.prompt):
                return episode, skipped
        raise SettingError(
            f"data.tasks: {TRIES} questions in a row leave no room for an answer, such as "
            f"{str(episode.prompt[-1]['content'])[:40]!r}; use shorter ones or a longer "
            "train.context"
        )

    def too_long(self, seed: int) -> int:
        """How many of the first MEASURED episodes leave no room."""
        episodes = (self.environment.reset(index, seed) for index in range(MEASURED))
        return sum(not self.fits(episode.prompt) for episode in episodes)


def too_long(fitting: Sequence[Fitting], seed: int) -> tuple[int, int]:
    """How many of the first questions leave no room for an answer, and of how many.

    Raises:
        SettingError: all do.
    """
    found, asked = sum(one.too_long(seed) for one in fitting), MEASURED * len(fitting)
    if found == asked:
        fitting[0].reset(0, seed)  # which says so, with an example
    return found, asked


def question_remarks(fitting: Sequence[Fitting], context: int, seed: int) -> list[str]:
    """What a person should know about the questions that are asked, a sentence each."""
    found, asked = too_long(fitting, seed)
    environments = [one.environment for one in fitting]
    tasks = [one.task for one in environments if isinstance(one, TaskEnvironment)]
    remarks = remarks_of(notes_of(tasks))
    if found:
        remarks.append(
            f"{found:,} of the first {asked:,} questions leave no room for an answer within "
            f"{context} tokens; others are asked in their place."
        )
    return remarks


@dataclass
class QuestionEpisode:
    """A question of a task. The last reply is scored, which is the only one unless the user says
    something further, or the task is interactive.
    """

    task: Task
    question: Question
    replies: list[str] = field(default_factory=list)

    @property
    def reply(self) -> str:
        """The last one."""
        return self.replies[-1] if self.replies else ""

    @property
    def prompt(self) -> Sequence[Message]:
        return self.question.messages

    @property
    def fields(self) -> Mapping[str, Any]:
        question = self.question  # its record may have a task of its own
        return {"task": self.task.name, **question.fields, "answer": question.answer}

    def step(self, reply: str) -> Turn:
        self.replies.append(reply)
        said = followed(self.task, self.question, self.replies)
        return Turn() if said is None else Turn(({"role": "user", "content": said},))

    def score(self) -> float:
        return graded(self.task, self.question, self.reply)


@dataclass(frozen=True)
class TaskEnvironment:
    """The training questions of a task, asked in their order."""

    task: Task

    def reset(self, index: int, seed: int) -> QuestionEpisode:
        question = self.task.question("train", index, seed)
        if question.tools:
            raise SettingError(
                f"tasks: {self.task.name}: rollouts list no tools in the chat template; set "
                "form=text, which lists them in a message"
            )
        if question.plain:
            raise SettingError(
                f"tasks: {self.task.name}: rollouts ask in the chat template, and this task "
                "is a text to continue; set plain=false"
            )
        return QuestionEpisode(self.task, question)

    def fingerprint(self, seed: int) -> str:
        questions = [self.task.question("train", index, seed) for index in range(ASKED)]
        if isinstance(self.task, FileTask):  # a file has an end
            questions += self.task.asked("train")
        facts = [(one.prompt, one.answer, *sorted(one.fields.items())) for one in questions]
        played = self.task if isinstance(self.task, Interactive) else None
        return hashlib.sha256(repr((self.task.name, facts, played)).encode()).hexdigest()
