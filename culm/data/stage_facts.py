"""What a stage of cleaning did to a corpus, as its manifest keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from culm.config import Config
from culm.data.source_file import SourceFile


class Reason(Config):
    """What was dropped for one reason: how many documents, bytes of text, and the beginnings of the
    first of them.
    """

    documents: int
    bytes: int
    samples: tuple[str, ...]


class StageFacts(Config):
    """settings: of the stage. files: that it read. versions: of libraries that it used. changes:
    what it changed, by a phrase that follows the number. dropped: by reason.
    """

    settings: Mapping[str, Any]
    files: dict[str, SourceFile] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    changes: dict[str, int] = Field(default_factory=dict)
    dropped: dict[str, Reason] = Field(default_factory=dict)

    @property
    def digests(self) -> list[str]:
        """Of the files that it read."""
        return [file.sha256 for file in self.files.values()]

    @property
    def remarks(self) -> Iterator[tuple[str, int]]:
        """Phrases with the numbers before them."""
        kind = self.settings["kind"]
        for phrase, count in self.changes.items():
            yield f"{phrase} ({kind})", count
        for reason, found in self.dropped.items():
            yield f"documents are dropped by {kind}: {reason}", found.documents
