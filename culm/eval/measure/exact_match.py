"""Share of test questions that the model answers exactly."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from pydantic import PositiveInt

from culm.engine.sampling import Sampling
from culm.eval.exact import accuracies, answer_questions, distinct
from culm.eval.measure.measure import MeasureConfig, Subject
from culm.model.transformer import require_vocabulary
from culm.task import Tasks
from culm.text.reply import request_of


class ExactMatch(MeasureConfig):
    """Result: `exact_match`, which maps each task, and `all`, to its accuracy with a 95 % interval.
    Answers are greedy.

    tasks: where the questions come from. questions: distinct test questions per task; all of them
    if a task has fewer. max_tokens: limit of an answer.
    """

    kind: Literal["exact_match"] = "exact_match"
    tasks: Tasks = ()
    questions: PositiveInt = 100
    max_tokens: PositiveInt = 32

    def check(self, subject: Subject) -> None:
        """Each question must leave room for an answer."""
        if self.tasks:
            require_vocabulary(subject.model)
        for _, question in distinct(self.tasks, self.questions, subject.seed):
            request_of(
                question.prompt, subject.tokenizer, self.max_tokens, subject.model.config.context,
                Sampling(temperature=0.0),
            )  # fmt: skip

    def measure(self, subject: Subject) -> dict[str, Any]:
        """Nothing without tasks."""
        if not self.tasks:
            return {}
        asked = distinct(self.tasks, self.questions, subject.seed)
        own = answer_questions(
            subject.model, subject.tokenizer, subject.share(asked), self.max_tokens
        )
        scores = subject.join([item.score for item in own], len(asked))
        names = [task.name for task, _ in asked]
        table = accuracies(list(zip(names, scores, strict=True)))
        return {"exact_match": {name: asdict(accuracy) for name, accuracy in table.items()}}
