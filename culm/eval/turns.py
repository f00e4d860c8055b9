"""Dialogues of a model: it answers each turn after its own earlier replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from culm.eval.responder import Generation, Reply, Responder
from culm.task.interactive import continued, followed
from culm.task.task import Question, Task
from culm.text.reply import NoRoom

Asked = tuple[Task, Question]
Ask = Callable[[Sequence[Asked], Generation], Sequence[list[Reply] | NoRoom]]

ENDED = "dialogues_ended_by_context"


@dataclass
class Dialogue:
    """One sample of a question. place: of the question among those that are asked.

    turns: what is asked in each turn, with all that was said before it. replies: one to each turn.
    cut: the task says something further, and the context has no room for a reply to it.
    """

    place: int
    task: Task
    turns: list[Question]
    replies: list[Reply] = field(default_factory=list)
    cut: bool = False

    @property
    def last(self) -> str:
        """The last reply."""
        return self.replies[-1].text

    def follows(self) -> bool:
        """Hand the last reply to the task; whether the model is asked once more."""
        said = followed(self.task, self.turns[0], [reply.text for reply in self.replies])
        if said is not None:
            self.turns.append(continued(self.turns[-1], self.last, said))
        return said is not None

    def end(self, reason: NoRoom) -> None:
        """Without a reply to the last turn. Raises the reason if this is the only turn."""
        if not self.replies:
            raise reason
        self.turns.pop()
        self.cut = True


def dialogues(asked: Sequence[Asked], how: Generation, ask: Ask) -> list[list[Dialogue]]:
    """For each question, as many dialogues as `how` has samples, each to its end: the task says
    nothing further, or the context has no room for a further reply. ask: gives the replies to one
    turn of many dialogues.

    Raises:
        NoRoom: a question leaves no room for a first reply.
    """
    found = [
        [Dialogue(place, task, [question]) for _ in range(how.samples)]
        for place, (task, question) in enumerate(asked)
    ]
    active = [one for samples in found for one in samples]
    while active:
        _answer(active, how, ask)
        active = [one for one in active if not one.cut and one.follows()]
    return found


def ended(count: int) -> dict[str, int]:
    """A result that says how many dialogues the context ended; none if it ended none."""
    return {ENDED: count} if count else {}


def replies_of(responder: Responder) -> Ask:
    """Asks a model, whatever the tasks."""
    return lambda asked, how: responder.replies([question for _, question in asked], how)


def _answer(active: Sequence[Dialogue], how: Generation, ask: Ask) -> None:
    """One reply more in each dialogue. Those of a question that are the same so far are samples of
    one, each with random numbers of its own.
    """
    same: dict[tuple[int, str], list[Dialogue]] = {}
    for one in active:
        same.setdefault((one.place, repr(one.turns[-1].messages)), []).append(one)
    for samples in sorted({len(group) for group in same.values()}):
        groups = [group for group in same.values() if len(group) == samples]
        asked = [(group[0].task, group[0].turns[-1]) for group in groups]
        given = ask(asked, replace(how, samples=samples))
        for group, replies in zip(groups, given, strict=True):
            for sample, one in enumerate(group):
                if isinstance(replies, NoRoom):
                    one.end(replies)
                else:
                    one.replies.append(replies[sample])
