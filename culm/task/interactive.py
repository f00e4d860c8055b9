"""Tasks of several turns: what a task says after a reply, as a tool or a game does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from culm.task.task import Question, Task


@runtime_checkable
class Interactive(Protocol):
    """What a task has besides if it answers replies. The last reply of a dialogue is scored."""

    def follow(self, question: Question, replies: Sequence[str]) -> str | None:
        """What the model reads after these replies; None: the dialogue is over.

        It is over after some number of replies, whatever they are. Never raises.
        """
        ...

    def shown(self, question: Question) -> Sequence[str]:
        """The replies that fine-tuning shows. The last one scores 1, if there are enough turns."""
        ...


def followed(task: Task, question: Question, replies: Sequence[str]) -> str | None:
    """What the user says after these replies to a question; None: nothing."""
    if isinstance(task, Interactive):
        return task.follow(question, replies)
    return next(iter(question.further[len(replies) - 1 : len(replies)]), None)


def continued(question: Question, reply: str, said: str) -> Question:
    """The question after a reply, and what the user said to it."""
    before = (*question.messages, {"role": "assistant", "content": reply})
    return replace(question, prompt=said, before=before, further=question.further[1:])


def dialogue(task: Task, question: Question) -> list[dict[str, str]]:
    """A question with the reply that fine-tuning shows; of several turns, all of them. A system
    message before the question stays; examples before it do not, since they would be learned.
    """
    replies = task.shown(question) if isinstance(task, Interactive) else [question.reply]
    messages = [
        {"role": "system", "content": str(one["content"])}
        for one in question.before
        if one["role"] == "system"
    ]
    messages.append({"role": "user", "content": question.prompt})
    for number, reply in enumerate(replies, start=1):
        messages.append({"role": "assistant", "content": reply})
        if number < len(replies):
            said = followed(task, question, replies[:number])
            assert said is not None, "a dialogue ends before the replies that it shows"
            messages.append({"role": "user", "content": said})
    return messages
