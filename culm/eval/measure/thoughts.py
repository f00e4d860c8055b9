"""Answers to questions of a task, after thoughts (`culm.objective.coconut`)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt

from culm.concept.thoughts import check_thinks, thoughts
from culm.config import SettingError
from culm.data.format.thoughts import part_of
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.eval.interval import wilson
from culm.eval.measure.measure import MeasureConfig, Subject
from culm.model.ability import require_vocabulary
from culm.objective.coconut import SPECIAL
from culm.task import AnyTask
from culm.task.graph import Graph
from culm.task.task import Question, Task

SLOTS = 64


class Thoughts(MeasureConfig):
    """Results: `accuracy`, with its 95 % interval `accuracy_low` and `accuracy_high`, and
    `answer_tokens`, the mean number of latents and written tokens.

    task: whose test questions are asked. questions: how many. thoughts, latents: as in training,
    before each answer. max_tokens: that are written.
    """

    kind: Literal["thoughts"] = "thoughts"
    task: AnyTask = Graph()
    questions: PositiveInt = 200
    thoughts: Literal["latent", "pause", "words", "none"] = "latent"
    latents: NonNegativeInt = 3
    max_tokens: PositiveInt = 64

    def check(self, subject: Subject) -> None:
        """The model must have tokens of thoughts, and be able to read its own states."""
        model, ids = subject.model, subject.tokenizer.vocabulary
        require_vocabulary(model)
        if ids > model.config.vocabulary - SPECIAL:
            raise SettingError(
                f"kind: thoughts measures models of culm train coconut, whose vocabulary has "
                f"{SPECIAL} rows after those of the tokenizer; leave it out"
            )
        if self.thoughts == "latent":
            check_thinks(model)

    def measure(self, subject: Subject) -> dict[str, Any]:
        """Greedy answers through the engine; each rank asks a share."""
        self.check(subject)
        task: Task = self.task
        numbers = subject.share(range(self.questions))
        asked = [task.question("test", number, subject.seed) for number in numbers]
        requests = [self.request(question, subject) for question in asked]
        length = max((len(r.prompt) for r in requests), default=1) + self.max_tokens
        size = subject.model.config.vocabulary
        special = range(size - SPECIAL, size)
        length = min(length, subject.model.config.context)
        engine = Engine(subject.model, SLOTS, length, suppressed=list(special))
        done = engine.generate(requests)
        # A stop token may be one that decodes to text, such as byte 0.
        written = [one.tokens[: len(one.tokens) - (one.finish == "stop")] for one in done]
        right = [
            task.score(question, subject.tokenizer.decode(tokens))
            for question, tokens in zip(asked, written, strict=True)
        ]
        thinks = self.latents if self.thoughts in ("latent", "pause") else 0
        tokens = [len(one.tokens) + thinks for one in done]
        found = wilson(sum(subject.join(right, self.questions)), self.questions)
        return {
            "accuracy": found.value,
            "accuracy_low": found.low,
            "accuracy_high": found.high,
            "answer_tokens": sum(subject.join(tokens, self.questions)) / self.questions,
        }

    def request(self, question: Question, subject: Subject) -> Request:
        """A question with its thoughts, to be answered."""
        model, tokenizer = subject.model, subject.tokenizer
        tokens = [*tokenizer.start, *part_of(question.prompt, tokenizer)]
        bot, embeddings = model.config.vocabulary - SPECIAL, ()
        if self.thoughts in ("latent", "pause"):
            tokens.append(bot)
            if self.thoughts == "latent" and self.latents:
                row = torch.tensor(tokens, device=model.device)
                found = thoughts(model, row, self.latents)
                embeddings = tuple(enumerate(found, len(tokens)))  # type: ignore[assignment]
            tokens += [*[bot + 1] * self.latents, bot + 2]
        room = model.config.context - len(tokens)
        return Request(
            tuple(tokens), min(self.max_tokens, room), Sampling(temperature=0.0),
            tokenizer.stop_ids | {tokenizer.end_of_text}, embeddings=embeddings,
        )  # fmt: skip
