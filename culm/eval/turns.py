"""Replies to tasks that answer them: tools and games."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from culm import log
from culm.eval.local import LocalModel
from culm.eval.responder import Generation, Reply, Responder
from culm.task.interactive import Interactive, continued
from culm.task.task import Question, Task


@dataclass
class _Dialogue:
    """One sample of an interactive task. now: the question after all that was said so far.

    sample: its number among those of the question.
    """

    task: Interactive
    question: Question
    now: Question
    sample: int
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
        [_Dialogue(task, question, question, n, [reply]) for n, reply in enumerate(replies)]
        if isinstance(task, Interactive)
        else []
        for (task, question), replies in zip(asked, first, strict=True)
    ]
    for sample in range(how.samples):
        own = [one for group in dialogues for one in group if one.sample == sample]
        # Equal replies so far must not lead to equal ones from there on.
        _play(responder, own, replace(how, samples=1, first=how.first + sample))
    return [
        [one.result for one in group] or replies
        for group, replies in zip(dialogues, first, strict=True)
    ]


def _play(responder: Responder, active: Sequence[_Dialogue], how: Generation) -> None:
    """Play dialogues to their end."""
    while followed := [one for one in active if one.follows()]:
        active = [one for one in followed if fits(responder, one.now, how)]
        if ended := len(followed) - len(active):
            log.say(
                f"{ended:,} dialogues end before the task is done with them, since the context has "
                "no room for another turn"
            )
        if not active:
            return
        for one, [reply] in zip(
            active, responder.replies([one.now for one in active], how), strict=True
        ):
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
