"""The contents of a prepared folder, with a checksum of every file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from culm.batch import Reads
from culm.config import Config, SettingError, parse
from culm.data.notes import remarks_of
from culm.data.source_file import SourceFile
from culm.data.stage_facts import StageFacts
from culm.files import sha256, write_json

NAME = "manifest.json"
SEAL = "sha256"
SHARE = 0.05  # of the bytes that is held out without a remark
CONTENTS = (NAME, "tokenizer", "train", "held_out")


class File(Config):
    """Size and checksum of one file."""

    bytes: int
    sha256: str

    @staticmethod
    def of(path: Path) -> File:
        return File(bytes=path.stat().st_size, sha256=sha256(path))


class SplitFacts(Config):
    """One split. learned: tokens that are learned; bytes: of the text, as UTF-8."""

    documents: int
    tokens: int
    learned: int
    bytes: int
    shards: int
    files: dict[str, File]


class Manifest(Config):
    """A prepared corpus.

    gives: what an objective can read in it. group: documents that belong together; 0: all of a
    record. columns: names of the numbers that each document, or token (per), carries. difficulty:
    the field whose number each document carries too, for a curriculum. dropped: exact duplicates.
    tokenizer: a fingerprint. template: one of the chat template and its variables, for dialogues.
    origin: the files that it was made from; revisions: those of datasets on the hub and of files
    with a URL. clean: what each stage of cleaning did. prepare: arguments of `culm prepare`, where
    that made it. notes: what was left out or not used; the number comes before the phrase.
    """

    source: str
    origin: dict[str, SourceFile] = Field(default_factory=dict)
    revisions: dict[str, str] = Field(default_factory=dict)
    format: str
    gives: Reads
    group: int
    columns: tuple[str, ...] = ()
    per: Literal["row", "token"] = "row"
    difficulty: str | None = None
    tokenizer: str
    template: str | None = None
    vocabulary: int
    end_of_text: int
    held_out: float
    seed: int
    dropped: int
    clean: tuple[StageFacts, ...] = ()
    prepare: tuple[str, ...] = ()
    notes: dict[str, int] = Field(default_factory=dict)
    splits: dict[str, SplitFacts]

    @property
    def documents(self) -> int:
        return sum(split.documents for split in self.splits.values())

    @property
    def tokens(self) -> int:
        return sum(split.tokens for split in self.splits.values())

    @property
    def bytes(self) -> int:
        return sum(split.bytes for split in self.splits.values())

    @property
    def held_out_share(self) -> float:
        """Of the bytes."""
        held = self.splits.get("held_out")
        return 0.0 if held is None else held.bytes / max(1, self.bytes)

    @property
    def remarks(self) -> list[str]:
        """What a person should know about the corpus, a sentence each."""
        counts, share = dict(self.notes), self.held_out_share
        if self.dropped:
            counts["records are duplicates and dropped; data.duplicates=keep keeps them"] = (
                self.dropped
            )
        remarks = remarks_of(counts)
        remarks += [
            f"{count:,} {phrase}." for stage in self.clean for phrase, count in stage.remarks
        ]
        if share > 2 * self.held_out and share > SHARE:
            remarks.append(
                f"{100 * share:.0f} % of the bytes are held out, by data.held_out={self.held_out}: "
                "there are few documents, and each is in one split."
            )
        return remarks

    def write(self, folder: Path) -> None:
        """Write it, with a SHA-256 of itself."""
        values = self.model_dump(mode="json")
        write_json(folder / NAME, {**values, SEAL: _seal(values)})

    @staticmethod
    def read(folder: Path) -> Manifest:
        """The manifest of a prepared folder.

        Raises:
            SettingError: there is none, or it is damaged.
        """
        path = folder / NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SettingError(
                f"{folder}: not a prepared corpus: it has no {NAME}; give a folder "
                "that culm prepare wrote, or delete a damaged one to prepare it again"
            ) from None
        except (OSError, ValueError) as error:
            raise SettingError(
                f"{path}: damaged ({error}); delete {folder} to prepare it again"
            ) from None
        seal = values.pop(SEAL, None) if isinstance(values, dict) else None  # older ones have none
        if seal is not None and seal != _seal(values):
            raise SettingError(
                f"{path}: changed since it was written (SHA-256 differs); delete {folder} to "
                "prepare it again"
            )
        try:
            return parse(Manifest, values)
        except SettingError:
            raise SettingError(f"{path}: damaged; delete {folder} to prepare it again") from None


def _seal(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def is_corpus(folder: Path) -> bool:
    """Whether a folder holds what `prepare` writes and nothing else."""
    if not folder.is_dir():
        return False
    try:
        Manifest.read(folder)
    except SettingError:
        return False
    return {inner.name for inner in folder.iterdir()} <= set(CONTENTS)
