"""A tokenizer that is there already."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from culm.config import Config
from culm.tokenizer.tokenizer import Tokenizer


class Saved(Config):
    """path: a folder that `culm tokenize` wrote, or that of a model."""

    kind: Literal["saved"] = "saved"
    path: Path

    def build(self, texts: Iterable[str] = ()) -> Tokenizer:
        """The tokenizer as it was saved; the texts are not read."""
        return Tokenizer.load(self.path)
