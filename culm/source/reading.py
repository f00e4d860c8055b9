"""How files are read, whatever their kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DocumentSplit = Literal["file", "paragraphs", "lines"]
Invalid = Literal["error", "replace", "skip"]


@dataclass(frozen=True)
class Reading:
    """split, separator: what counts as a document in a text. invalid: what to do with bytes that
    are not UTF-8, and with what cannot be read.
    """

    split: DocumentSplit = "file"
    invalid: Invalid = "error"
    separator: str | None = None
