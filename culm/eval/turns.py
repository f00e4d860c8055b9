"""Replies to tasks that answer them: tools and games."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from culm.eval.local import LocalModel
from culm.eval.responder import Generation, Reply, Responder
from culm.task.interactive import Interactive, continued
from culm.task.task import Question, Task

ENDED = "dialogues end early, since the context of {context} has no room for a further reply"


@dataclass
class _Dialogue:
    """One sample of an interactive task. place: of its question among those that are asked. now:
    the question after all that was said so far.
    """

    place: int
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
    """For each question, as many replies as are asked for: the last ones of a task that answers
    them. A dialogue that no longer fits the model's context ends there.
    """
    first = responder.replies([question for _, question in asked], how)
    dialogues = [
        [_Dialogue(place, task, question, question, [reply]) for reply in replies]
        if isinstance(task, Interactive)
        else []
        for place, ((task, question), replies) in enumerate(zip(asked, first, strict=True))
    ]
    active = [one for group in dialogues for one in group]
    while active := _with_room(responder, [one for one in active if one.follows()], how):
        _answer(responder, active, how)
    return [
        [one.result for one in group] or replies
        for group, replies in zip(dialogues, first, strict=True)
    ]


def _with_room(
    responder: Responder, dialogues: Sequence[_Dialogue], how: Generation
) -> list[_Dialogue]:
    found = [one for one in dialogues if fits(responder, one.now, how)]
    if isinstance(responder, LocalModel) and len(found) < len(dialogues):
        context = responder.model.config.context
        responder.notes[ENDED.format(context=context)] += len(dialogues) - len(found)
    return found


def _answer(responder: Responder, dialogues: Sequence[_Dialogue], how: Generation) -> None:
    """One reply more in each dialogue. Those of a question that are the same so far are samples of
    one, each with random numbers of its own.
    """
    same: dict[tuple[int, str], list[_Dialogue]] = {}
    for one in dialogues:
        same.setdefault((one.place, repr(one.now.messages)), []).append(one)
    for samples in sorted({len(group) for group in same.values()}):
        groups = [group for group in same.values() if len(group) == samples]
        asked = [group[0].now for group in groups]
        replies = responder.replies(asked, replace(how, samples=samples))
        for group, given in zip(groups, replies, strict=True):
            for one, reply in zip(group, given, strict=True):
                one.replies.append(reply)


def fits(responder: Responder, question: Question, how: Generation) -> bool:
    """Whether a model in this process has room for a reply; a server says so itself."""
    if not isinstance(responder, LocalModel):
        return True
    try:
        responder.check(question, how)
    except ValueError:
        return False
    return True
