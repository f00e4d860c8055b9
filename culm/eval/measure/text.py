"""How well a model predicts a text of any source."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import PositiveInt

from culm.config import SettingError
from culm.eval.local import LocalModel
from culm.eval.measure.measure import MeasureConfig, Subject
from culm.model.ability import require_vocabulary
from culm.source import open_source
from culm.source.record import written
from culm.source.source import LeftOutOnly, found_in


class Text(MeasureConfig):
    """Results: `bits_per_byte`, `perplexity` per token, and the `bytes` that were predicted.

    path: text files, JSONL or Parquet with a field `text`, a folder, or a dataset of the hub.
    documents: at most this many of them; all of them if it is null. Documents that are longer than
    the model's context are read in parts.
    """

    kind: Literal["text"] = "text"
    path: str
    documents: PositiveInt | None = None

    def check(self, subject: Subject) -> None:
        """The source must have a text."""
        require_vocabulary(subject.model)
        if not self.texts():
            raise SettingError(f"path: {self.path} holds no text")

    def texts(self) -> list[str]:
        """The documents, without empty ones."""
        source = open_source(self.path, setting="path")
        found: list[str] = []
        skipped = LeftOutOnly()
        for _, [text] in found_in(source, lambda record: iter([written(record, "text")]), skipped):
            found += [text] if text else []
            if len(found) == self.documents:
                break
        skipped.say()
        return found

    def measure(self, subject: Subject) -> dict[str, Any]:
        """Sums over all documents first, then one division."""
        local = LocalModel(subject.model, subject.tokenizer)
        own = subject.share(self.texts())
        found = local.rolling(own)
        nats, tokens, size = subject.sum(
            [
                -sum(one.logprob for one in found),
                sum(one.tokens for one in found),
                sum(len(text.encode()) for text in own),
            ]
        )
        return {
            "bits_per_byte": nats / math.log(2) / size,
            "perplexity": math.exp(nats / tokens),
            "bytes": round(size),
        }
