"""A tokenizer that was trained before, for a new model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from culm.config import Config, SettingError
from culm.tokenizer.read import read_tokenizer
from culm.tokenizer.tokenizer import Tokenizer


class Saved(Config):
    """path: a folder that `culm tokenize train` wrote, or that of a model or run; or a file."""

    kind: Literal["saved"] = "saved"
    path: Path

    def build(self, texts: Iterable[str] = ()) -> Tokenizer:
        """The tokenizer in the folder; `texts` is not read."""
        try:
            return read_tokenizer(self.path.expanduser())
        except SettingError as error:
            raise SettingError(f"tokenizer.path: {error}") from None
