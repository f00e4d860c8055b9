"""Scores of the quickstart's models, all on the same text and questions."""

from __future__ import annotations

from pathlib import Path

import torch

from culm.convert.load import read
from culm.device import choose_device, choose_precision
from culm.dtype import DTYPES
from culm.eval.exact import Answered, answer_questions, distinct
from culm.eval.measure.exact_match import ExactMatch
from culm.eval.measure.held_out import HeldOut
from culm.eval.perplexity import Prediction, predict
from culm.model.backend import place
from culm.model.transformer import Transformer
from culm.parallel.ranks import Ranks
from culm.run.assemble import loader
from culm.run.settings import RunConfig
from culm.tokenizer.tokenizer import Tokenizer


class Scorer:
    """text, dialogues: runs whose `eval` sections are used; corpus: folder of the held-out text."""

    def __init__(self, text: RunConfig, dialogues: RunConfig, corpus: Path) -> None:
        self.text, self.dialogues, self.corpus = text, dialogues, corpus

    @property
    def questions(self) -> int:
        """Questions per task in a run of full length."""
        return self.dialogues.eval.first(ExactMatch).questions

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
        measure, seed = self.dialogues.eval.first(ExactMatch), self.dialogues.eval.seed
        asked = distinct(measure.tasks, questions, seed)
        return answer_questions(model, tokenizer, asked, measure.max_tokens)
