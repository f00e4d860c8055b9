"""Questions of tasks, what a model answers, and how many it answers right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from culm.engine.continuations import Likelihood
from culm.eval.interval import Estimate, difference, estimate
from culm.eval.responder import Generation, Responder
from culm.eval.text_metrics import TextMetric, text_metrics
from culm.eval.turns import Asked, Dialogue, dialogues, replies_of
from culm.task.file_task import FileTask
from culm.task.interactive import Interactive
from culm.task.task import By, Question, Task, graded_together

TRIES = 20  # per distinct question; after that a task is taken to have no more
TOGETHER = 256  # questions that are answered before their answers are given on


@dataclass(frozen=True)
class Answered:
    """A question with the model's replies, their scores, and their length in tokens.

    A question with options has one reply, the option that the model takes, and the likelihood of
    each; tokens are those that were scored. cut: how many of its dialogues the context ended.
    """

    task: str
    question: Question
    replies: tuple[str, ...]
    scores: tuple[float, ...]
    tokens: int
    likelihoods: tuple[Likelihood, ...] = ()
    cut: int = 0

    @property
    def reply(self) -> str:
        """The first reply."""
        return self.replies[0]

    @property
    def score(self) -> float:
        """The mean of its scores."""
        return sum(self.scores) / len(self.scores)

    def right_by(self, by: By) -> float:
        """The score if its options were compared in this way."""
        return float(chosen(self.question, self.likelihoods, by) == self.question.right)


def distinct(tasks: Sequence[Task], questions: int | None, seed: int) -> list[Asked]:
    """Test questions of each task, in order of the tasks; fewer if a task has no more.

    Prompts of a task differ: a question that is asked twice would count as evidence twice.
    questions: None: all that a file has; of a task without end `TRIES` times 5.
    """
    return [(task, question) for task in tasks for question in _distinct(task, questions, seed)]


def _distinct(task: Task, questions: int | None, seed: int) -> list[Question]:
    found: dict[object, Question] = {}
    if isinstance(task, FileTask):
        known = len(task.asked("test"))
        # Also for the error that says why there is none.
        tries = max(known, 1)
    else:
        questions = questions or 5 * TRIES
        tries = TRIES * questions
    for index in range(tries):
        question = task.question("test", index, seed)
        # Of two that differ in their tools or in what else is said, neither is left out.
        secret = question.answer if isinstance(task, Interactive) else ""  # of a game
        rest = repr((question.before, question.tools, question.further, secret))
        found.setdefault((question.prompt, question.options, rest), question)
        if len(found) == questions:
            break
    return list(found.values())


def repeated(tasks: Sequence[Task], seed: int) -> Counter[str]:
    """How many questions of files are asked once and stand there again, by a phrase."""
    found = Counter[str]()
    for task in tasks:
        if isinstance(task, FileTask):
            known = task.asked("test")
            if more := len(known) - len(_distinct(task, None, seed) if known else ()):
                found[f"questions of {task.name} stand in its file again and are asked once"] = more
    return found


def answer_questions(
    responder: Responder, asked: Sequence[Asked], how: Generation
) -> list[Answered]:
    """The answers of a model with their scores, in the order of the questions. Of a dialogue, the
    last reply is scored.
    """
    found: list[Answered | None] = [None] * len(asked)
    chosen_from = [i for i, (_, question) in enumerate(asked) if question.options]
    written = [i for i, (_, question) in enumerate(asked) if not question.options]
    options = [option for i in chosen_from for option in asked[i][1].options]
    likelihoods = iter(responder.likelihoods(options))
    for i in chosen_from:
        task, question = asked[i]
        found[i] = _choice(task, question, tuple(next(likelihoods) for _ in question.options))
    played = dialogues([asked[i] for i in written], how, replies_of(responder))
    for i, one in zip(written, _scored(played), strict=True):
        found[i] = one
    return [one for one in found if one is not None]


def _scored(played: Sequence[Sequence[Dialogue]]) -> list[Answered]:
    """Questions with the last replies of their dialogues and scores; a task may score all of its
    replies together.
    """
    tasks: dict[str, list[Dialogue]] = {}
    for one in (one for samples in played for one in samples):
        tasks.setdefault(one.task.name, []).append(one)
    scores = {
        name: iter(graded_together(own[0].task, [(one.turns[0], one.last) for one in own]))
        for name, own in tasks.items()
    }
    return [
        Answered(
            first.task.name, first.turns[0], tuple(one.last for one in samples),
            tuple(next(scores[first.task.name]) for _ in samples),
            sum(reply.tokens for one in samples for reply in one.replies),
            cut=sum(one.cut for one in samples),
        )
        for samples in played
        for first in samples[:1]
    ]  # fmt: skip


def answered_in_parts(
    responder: Responder,
    asked: Sequence[Asked],
    how: Generation,
    done: Callable[[Sequence[Answered]], None],
) -> Iterator[Answered]:
    """As `answer_questions`; `done` gets some of the answers, as soon as they are there."""
    for start in range(0, len(asked), TOGETHER):
        part = answer_questions(responder, asked[start : start + TOGETHER], how)
        done(part)
        yield from part


def _choice(task: Task, question: Question, likelihoods: tuple[Likelihood, ...]) -> Answered:
    place = chosen(question, likelihoods, question.by)
    reply = "" if place is None else question.options[place].continuation.strip()
    score = float(place == question.right)
    tokens = sum(one.tokens for one in likelihoods)
    return Answered(task.name, question, (reply,), (score,), tokens, likelihoods)


def chosen(question: Question, likelihoods: Sequence[Likelihood], by: By) -> int | None:
    """The index of the option that a model takes; None if it would write another (greedy)."""
    if by == "greedy":
        return next((place for place, one in enumerate(likelihoods) if one.greedy), None)
    texts = (option.continuation.strip() for option in question.options)
    sizes = {
        "sum": [1] * len(likelihoods),
        "tokens": [one.tokens for one in likelihoods],
        "bytes": [len(text.encode()) for text in texts],
    }[by]
    values = [one.logprob / size for one, size in zip(likelihoods, sizes, strict=True)]
    return max(range(len(values)), key=values.__getitem__)


def estimates(scores: Sequence[tuple[str, float]]) -> dict[str, Estimate]:
    """The mean score of each task, and of `all`; scores: pairs (task, score from 0 to 1)."""
    groups: dict[str, list[float]] = {}
    for task, score in scores:
        groups.setdefault(task, []).append(score)
    table = {name: estimate(group) for name, group in groups.items()}
    table["all"] = estimate([score for _, score in scores])
    return table


def estimates_of(answered: Sequence[Answered]) -> dict[str, Estimate]:
    """The mean score of each task, and of `all`."""
    return estimates([(item.task, item.score) for item in answered])


def compared(answered: Sequence[Answered], metrics: Sequence[TextMetric]) -> dict[str, Any]:
    """Text metrics of each task that has replies: of all of them, with their right answers."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    for one in answered:
        if not one.question.options:
            given = [(reply, one.question.answer) for reply in one.replies]
            pairs.setdefault(one.task, []).extend(given)
    return {task: text_metrics(metrics, *zip(*given, strict=True)) for task, given in pairs.items()}


def gain(ours: Sequence[Answered], theirs: Sequence[Answered], seed: int = 0) -> Estimate:
    """How much higher one model scores than another, as `culm.eval.interval.difference` has it.

    Raises:
        ValueError: the two did not answer the same questions in the same order.
    """
    if [(a.task, a.question) for a in ours] != [(b.task, b.question) for b in theirs] or not ours:
        raise ValueError("ours, theirs: not answers to the same questions")
    return difference([a.score for a in ours], [b.score for b in theirs], seed)
