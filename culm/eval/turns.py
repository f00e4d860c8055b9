"""Replies to tasks that answer them: tools and games."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from culm.eval.local import LocalModel
from culm.eval.responder import Generation, Reply, Responder
from culm.task.interactive import Interactive, continued
from culm.task.task import Question, Task


@dataclass
class _Dialogue:
    """One sample of an interactive task. now: the question after all that was said so far."""

    task: Interactive
    question: Question
    now: Question
    replies: list[Reply] = field(default_factory=list)

    def follows(self) -> bool:
        """Hand the last reply to the task; whether the model is asked once more."""
        said = self.task.follow(self.question, [reply.text for reply in self.replies])
        if said is not None:
            self.now = continued(self.now, self.replies[-1].text, said)
        return said is not None

    @property
    def result(self) -> Reply:
        """The last reply, with the tokens of all."""
        return Reply(self.replies[-1].text, sum(reply.tokens for reply in self.replies))


def last_replies(
    responder: Responder, asked: Sequence[tuple[Task, Question]], how: Generation
) -> list[list[Reply]]:
    """For each question, so many replies as are asked for: of a task that answers them, the last
    ones. A dialogue that no longer fits the model's context ends there.
    """
    first = responder.replies([question for _, question in asked], how)
    dialogues = [
        [_Dialogue(task, question, question, [reply]) for reply in replies]
        if isinstance(task, Interactive)
        else []
        for (task, question), replies in zip(asked, first, strict=True)
    ]
    active, once = [one for group in dialogues for one in group], replace(how, samples=1)
    while active := [one for one in active if one.follows() and fits(responder, one.now, once)]:
        replies = responder.replies([one.now for one in active], once)
        for one, [reply] in zip(active, replies, strict=True):
            one.replies.append(reply)
    return [
        [one.result for one in group] or replies
        for group, replies in zip(dialogues, first, strict=True)
    ]


def fits(responder: Responder, question: Question, how: Generation) -> bool:
    """Whether a model in this process has room for a reply; a server says so itself."""
    if not isinstance(responder, LocalModel):
        return True
    try:
        responder.check(question, how)
    except ValueError:
        return False
    return True
