"""Loss and bits per byte of held-out text."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt

from culm.eval.measure.measure import MeasureConfig, Subject
from culm.eval.perplexity import predict, require_scorable


class HeldOut(MeasureConfig):
    """Results: `loss`, in nats per token, and `bits_per_byte`.

    tokens: held-out tokens that are scored, spread evenly over the corpus.
    """

    kind: Literal["held_out"] = "held_out"
    tokens: PositiveInt = 100_000

    def check(self, subject: Subject) -> None:
        """The held-out text must have tokens to score."""
        rows, config = subject.held_out(), subject.model.config
        if rows is not None and config.head == "vocabulary":
            require_scorable(rows, subject.tokenizer, config.vocabulary, self.tokens)

    def measure(self, subject: Subject) -> dict[str, Any]:
        """Nothing without held-out text, or of a model that predicts no tokens."""
        rows = subject.held_out()
        if rows is None or subject.model.config.head != "vocabulary":
            return {}
        found = predict(subject.model, rows, subject.tokenizer, self.tokens, subject.ranks)
        return {"loss": found.loss, "bits_per_byte": found.bits_per_byte}
