"""What is measured of a model while it is trained, and at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from culm.eval.exact import answer, scores
from culm.eval.perplexity import Rows, predict
from culm.eval.settings import EvalConfig
from culm.files import read_lines, write_lines
from culm.model.transformer import Transformer
from culm.parallel.sharded import unsharded
from culm.text.language_model import LanguageModel
from culm.tokenizer.tokenizer import Tokenizer
from culm.train.trainer import Step


class Measure:
    """Held-out bits per byte and exact match; one line a time in `file`.

    rows: held-out text, None where there is none. writes: whether this rank does.
    """

    def __init__(
        self,
        settings: EvalConfig,
        model: Transformer,
        tokenizer: Tokenizer,
        rows: Callable[[], Rows | None],
        file: Path,
        writes: bool = True,
    ) -> None:
        self.settings, self.model, self.tokenizer = settings, model, tokenizer
        self.rows, self.file, self.writes = rows, file, writes

    def hook(self, step: Step) -> None:
        """In the middle of a run; what follows the last step is measured by its own call."""
        if not step.last:
            self(step.number)

    def __call__(self, step: int) -> dict[str, Any]:
        """Every rank takes part, since a sharded model needs all of them."""
        found: dict[str, Any] = {"step": step}
        with unsharded(self.model):
            found |= self._prediction() | self._answers()
        if self.writes and len(found) > 1:
            # A run that went on from an earlier step measures again what it had found later.
            earlier = [line for line in read_lines(self.file) if line["step"] < step]
            write_lines(self.file, [*earlier, found])
        return found

    def _prediction(self) -> dict[str, Any]:
        rows = self.rows()
        if rows is None:
            return {}
        prediction = predict(self.model, rows, self.tokenizer, self.settings.tokens)
        return {"loss": prediction.loss, "bits_per_byte": prediction.bits_per_byte}

    def _answers(self) -> dict[str, Any]:
        settings = self.settings
        if not settings.tasks:
            return {}
        asked = settings.tasks, settings.questions, settings.seed, settings.max_tokens
        answered = answer(self.model, self.tokenizer, *asked)
        return {"exact_match": {name: asdict(score) for name, score in scores(answered).items()}}

    def samples(self) -> list[dict[str, Any]]:
        """Continuations of the sample texts, at each temperature, as far as the context goes."""
        with unsharded(self.model):
            return [
                {"prompt": prompt, "temperature": t, "text": self._continue(prompt, t)}
                for prompt in self.settings.samples
                for t in self.settings.temperatures
            ]

    def _continue(self, prompt: str, temperature: float) -> str:
        model = LanguageModel(self.model, self.tokenizer)
        room = model.context - len(model.encode(prompt))
        tokens = min(self.settings.sample_tokens, room)
        return "".join(
            model.stream(prompt, tokens, temperature=temperature, seed=self.settings.seed)
        )
