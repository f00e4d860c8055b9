"""Documents that a trained classifier finds bad."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from culm.data.clean.linear import LinearClassifier
from culm.data.clean.stage import Filter, Stage, Step


class Classifier(Stage):
    """model: a file that `culm classifier` wrote; its digest is in the manifest.
    threshold: of the probability that a document is like the positive texts; below it is dropped.
    """

    kind: Literal["classifier"] = "classifier"
    model: Path
    threshold: float = Field(0.5, ge=0, le=1)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.model,)

    def build(self) -> Step:
        return _Classified(
            LinearClassifier.load(self.model, "data.clean.classifier.model"), self.threshold
        )


class _Classified(Filter):
    def __init__(self, model: LinearClassifier, threshold: float) -> None:
        self._model, self._threshold = model, threshold

    def reason(self, text: str) -> str | None:
        if self._model.probability(text) >= self._threshold:
            return None
        return f"a probability below {self._threshold:g}"
