"""The `data` section of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from culm.config import Config, listed
from culm.data.format import Format
from culm.data.format.document import DocumentFormat
from culm.data.loader import Packing
from culm.data.source import Invalid, Source, Split, open_source


class DataConfig(Config):
    """What is learned from.

    path: files, folders, "stdlib" or dataset ids (see `open_source`); one or a list.
    prepared: a folder that `prepare` wrote, in place of a path.
    format: what a record means. held_out: share of the documents that is kept for evaluation.
    split: what of a text file is a document. invalid: what happens to bytes that are not UTF-8.
    packing: "auto" cuts documents into windows and packs dialogues whole into bins.
    """

    path: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    prepared: Path | None = None
    format: Format = DocumentFormat()
    held_out: float = Field(default=0.02, ge=0, le=0.5)
    split: Split = "file"
    invalid: Invalid = "error"
    packing: Packing = "auto"

    @model_validator(mode="after")
    def _one_origin(self) -> DataConfig:
        if bool(self.path) == (self.prepared is not None):
            raise ValueError("path: give a path, or prepared, and not both")
        return self

    def open(self) -> Source:
        """The source that `path` means."""
        return open_source(self.path, self.split, self.invalid)
