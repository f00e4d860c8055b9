"""Scores of the quickstart's models, all on the same text and questions."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from culm.convert.export import size_of
from culm.convert.load import read
from culm.device import choose_device, choose_precision
from culm.dtype import DTYPES
from culm.eval.local import LocalModel
from culm.eval.measure.held_out import HeldOut
from culm.eval.measure.scores import Scores
from culm.eval.perplexity import Prediction, predict
from culm.eval.questions import Answered, answer_questions, distinct, estimates_of
from culm.model.backend import place
from culm.model.transformer import Transformer
from culm.parallel.ranks import Ranks
from culm.run.assemble import loader
from culm.run.settings import RunConfig
from culm.tokenizer.tokenizer import Tokenizer

LISTED = 100  # questions per task where the measure asks all of them


class Scorer:
    """text, dialogues: runs whose `eval` sections are used; corpus: folder of the held-out text."""

    def __init__(self, text: RunConfig, dialogues: RunConfig, corpus: Path) -> None:
        self.text, self.dialogues, self.corpus = text, dialogues, corpus

    @property
    def questions(self) -> int:
        """Questions per task in a run of full length."""
        return self.dialogues.eval.first(Scores).questions or LISTED

    def read(self, path: Path) -> tuple[Transformer, Tokenizer]:
        """A model in the precision, with the backend and on the device of the training runs."""
        model, tokenizer = read(path, "cpu", torch.float32)
        device = choose_device(self.text.device)
        return place(model.eval(), device, DTYPES[choose_precision(device)]), tokenizer

    def predict(self, model: Transformer, tokenizer: Tokenizer) -> Prediction:
        """Loss and bits per byte of held-out text."""
        context = model.config.context
        rows = loader(self.text, tokenizer, self.corpus, context, Ranks(), "held_out")
        return predict(model, rows, tokenizer, self.text.eval.first(HeldOut).tokens)

    def answer(self, model: Transformer, tokenizer: Tokenizer, questions: int) -> list[Answered]:
        """Answers to test questions; `questions` per task."""
        measure, seed = self.dialogues.eval.first(Scores), self.dialogues.eval.seed
        asked = distinct(measure.tasks, questions, seed)
        return answer_questions(LocalModel(model, tokenizer, seed), asked, measure.generation)

    def evaluate(self, path: Path, questions: int) -> tuple[dict[str, Any], list[Answered]]:
        """Scores of a model, with one answer per task as an example, and all its answers."""
        model, tokenizer = self.read(path)
        start = time.perf_counter()
        answered = self.answer(model, tokenizer, questions)
        seconds = time.perf_counter() - start
        first = {item.task: item for item in reversed(answered)}  # of each task
        return {
            "bits_per_byte": self.predict(model, tokenizer).bits_per_byte,
            "exact_match": _as_json(answered),
            "tokens_per_second": sum(item.tokens for item in answered) / seconds,
            "examples": [_example(first[task]) for task in reversed(first)],
        }, answered

    def packed(self, path: Path, questions: int) -> dict[str, Any]:
        """Scores of a quantised or exported model, read from its file."""
        model, tokenizer = self.read(path)
        prediction = self.predict(model, tokenizer)
        return {
            "path": str(path),
            "bytes": size_of(path),
            "bits_per_byte": prediction.bits_per_byte,
            "perplexity": prediction.perplexity,
            "exact_match": _as_json(self.answer(model, tokenizer, questions))["all"],
        }


def _as_json(answered: list[Answered]) -> dict[str, Any]:
    return {task: asdict(accuracy) for task, accuracy in estimates_of(answered).items()}


def _example(item: Answered) -> dict[str, Any]:
    return {
        "task": item.task,
        "prompt": item.question.prompt,
        "reply": item.reply,
        "score": item.score,
    }
