"""A model answers the questions of a suite; answers that are stored already are read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from culm import log
from culm.config import Config
from culm.convert.weights import fingerprint
from culm.eval.answers_file import AnswersFile
from culm.eval.measure.scores import Scores
from culm.eval.pass_at_k import pass_at_k
from culm.eval.questions import Answered, answered_in_parts, compared, distinct, estimates_of
from culm.eval.responder import Responder
from culm.eval.text_metrics import TextMetric
from culm.eval.turns import Asked, ended
from culm.model.transformer import Transformer
from culm.task.task import By, Task

BY: tuple[By, ...] = ("sum", "tokens", "bytes")


@dataclass(frozen=True)
class Answers:
    """What a model answered to the questions of one measure."""

    answered: Sequence[Answered]
    metrics: Sequence[TextMetric] = ()

    def results(self) -> dict[str, Any]:
        """`scores` as the measure has them, and where a suite has them:

        choices: of each task with options, its score by sum, tokens and bytes. centred: its score
        above that of chance, (score - chance) / (1 - chance); core: the mean of these
        (2406.11794). pass_at_k: of each task with several replies, for k = 1, 2, 4, ...
        metrics: of texts, if any were asked for. dialogues_ended_by_context: how many ended with
        something that the model could not answer, if any; the last reply is scored.
        """
        scores = {name: asdict(one) for name, one in estimates_of(self.answered).items()}
        found: dict[str, Any] = {"scores": scores, **ended(sum(one.cut for one in self.answered))}
        tasks: dict[str, list[Answered]] = {}
        for one in self.answered:
            tasks.setdefault(one.task, []).append(one)
        chosen = {name: ones for name, ones in tasks.items() if ones[0].question.options}
        if chosen:
            found["choices"] = {
                name: {by: fmean(one.right_by(by) for one in ones) for by in BY}
                for name, ones in chosen.items()
                if ones[0].question.by != "greedy"
            }
            centred = {name: _centred(ones) for name, ones in chosen.items()}
            found |= {"centred": centred, "core": fmean(centred.values())}
        sampled = {name: ones for name, ones in tasks.items() if len(ones[0].scores) > 1}
        if sampled:
            found["pass_at_k"] = {name: _passes(ones) for name, ones in sampled.items()}
        if self.metrics:
            found["metrics"] = compared(self.answered, self.metrics)
        return found


def _centred(answered: Sequence[Answered]) -> float:
    options = [len(one.question.options) for one in answered]
    chance = fmean(0 if count == 1 else 1 / count for count in options)
    return (fmean(one.score for one in answered) - chance) / (1 - chance)


def _passes(answered: Sequence[Answered]) -> dict[str, float]:
    """A reply passes if it scores 1."""
    samples = len(answered[0].scores)
    counts = [2**i for i in range(samples.bit_length()) if 2**i <= samples]
    right = [sum(score == 1 for score in one.scores) for one in answered]
    return {str(k): fmean(pass_at_k(samples, c, k) for c in right) for k in counts}


def answer_suite(
    responder: Responder, model: str, measure: Scores, seed: int, path: Path | None = None
) -> Answers:
    """The answers of a model, with a progress bar. model: what identifies it.

    path: a file of answers, from which known ones are read, and to which others are added.
    """
    measure.require()
    asked = distinct(measure.tasks, measure.questions, seed)
    how = measure.generation
    scoring = {task.name: _scoring(task) for task, _ in asked}
    file = AnswersFile(path, model, how, seed, scoring) if path else None
    known = file.read(asked) if file else {}

    def known_of(one: Asked) -> Answered | None:
        return known.get(file.key(one[0].name, one[1])) if file else None

    left = [one for one in asked if known_of(one) is None]
    with log.progress("evaluate", len(asked), "questions") as bar:
        bar.advance(len(asked) - len(left))

        def done(part: Sequence[Answered]) -> None:
            bar.advance(len(part), part[-1].task)
            if file:
                file.write(part)

        new = answered_in_parts(responder, left, how, done)
        answered = [known_of(one) or next(new) for one in asked]
        return Answers(answered, measure.metrics)


def _scoring(task: Task) -> str:
    """The settings of a task that its scores depend on, such as how answers are compared."""
    if not isinstance(task, Config):
        return type(task).__name__
    where = {"name", "path", "split", "shots", "examples", "answers", "workers"}  # of questions
    return repr(sorted(task.model_dump(mode="json", exclude=where).items()))


def identity_of(model: Transformer) -> str:
    """What identifies the weights of a model, and how many bits they have."""
    # The fingerprint is the same in fp32 and bf16, and for quantised layers.
    kinds = sorted({f"{type(one).__name__} {one.dtype}" for one in model.parameters()})
    classes = sorted({type(module).__name__ for module in model.modules()})
    facts = f"{fingerprint(model)} {kinds} {classes}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]
