"""How well a model answers the test questions of tasks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from pydantic import NonNegativeFloat, PositiveInt

from culm.engine.sampling import Sampling
from culm.eval.local import LocalModel
from culm.eval.measure.measure import MeasureConfig, Subject
from culm.eval.questions import answer_questions, compared, distinct, estimates
from culm.eval.responder import Generation
from culm.eval.text_metrics import TextMetric, require_packages
from culm.eval.turns import ended
from culm.model.ability import require_vocabulary
from culm.task import Tasks
from culm.task.task import Task, Together


class Scores(MeasureConfig):
    """Result: `scores`, which maps each task, and `all`, to its mean score with a 95 % interval.
    Of a dialogue of several turns, the last reply is scored. It may have ended since the context
    had no room for a further reply: `dialogues_ended_by_context` counts these, if there are any.

    tasks: where the questions come from. questions: distinct test questions per task; all of them
    if a task has fewer, or if it is null.

    max_tokens: limit of a reply. samples: replies to each question, whose scores are averaged.
    temperature: of replies; at 0, the most likely token is taken.

    metrics: of replies as texts, in a result of this name for each task: rouge, bleu, chrf.
    """

    kind: Literal["scores"] = "scores"
    tasks: Tasks = ()
    questions: PositiveInt | None = 100
    max_tokens: PositiveInt = 32
    samples: PositiveInt = 1
    temperature: NonNegativeFloat = 0.0
    metrics: tuple[TextMetric, ...] = ()

    @property
    def generation(self) -> Generation:
        """How replies are made."""
        return Generation(self.max_tokens, Sampling(self.temperature), self.samples)

    def check(self, subject: Subject) -> None:
        """Each question must leave room for an answer."""
        self.require()
        if self.tasks:
            require_vocabulary(subject.model)
        local = LocalModel(subject.model, subject.tokenizer)
        for _, question in distinct(self.tasks, self.questions, subject.seed):
            local.check(question, self.generation)

    def require(self) -> None:
        """What the scores need besides the model, such as packages and a sandbox.

        Raises:
            SettingError: it is not here.
        """
        require_packages(self.metrics)
        tasks: tuple[Task, ...] = self.tasks
        for task in tasks:
            if isinstance(task, Together):
                task.score_together([])

    def measure(self, subject: Subject) -> dict[str, Any]:
        """Nothing without tasks."""
        if not self.tasks:
            return {}
        asked = distinct(self.tasks, self.questions, subject.seed)
        local = LocalModel(subject.model, subject.tokenizer, subject.seed)
        own = answer_questions(local, subject.share(asked), self.generation)
        scores = subject.join([item.score for item in own], len(asked))
        names = [task.name for task, _ in asked]
        table = estimates(list(zip(names, scores, strict=True)))
        found: dict[str, Any] = {"scores": {name: asdict(one) for name, one in table.items()}}
        (cut,) = subject.sum([sum(item.cut for item in own)])
        found |= ended(round(cut))
        if self.metrics:
            every = [item for items in subject.ranks.gather(own) for item in items]
            found["metrics"] = compared(every, self.metrics)
        return found
