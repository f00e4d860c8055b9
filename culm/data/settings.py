"""The `data` section of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from culm.batch import Reads
from culm.config import MAY_CHANGE, Config, MayChange, SettingError, listed, refuse_unused
from culm.data.clean import AnyStage
from culm.data.clean.cleaner import Cleaner, kept_beside
from culm.data.curriculum import Curriculum
from culm.data.difficulty import RecordField
from culm.data.divide import Duplicates
from culm.data.format import Format
from culm.data.format.document import DocumentFormat
from culm.data.mix import MixedCorpus, check_mix
from culm.data.rows import Packing
from culm.data.stream.settings import StreamConfig
from culm.data.tasks import TaskSource
from culm.data.token_files import PreparedText, TokenFiles, is_prepared, is_token_file
from culm.data.workers import Workers
from culm.source import Chain, DocumentSplit, Invalid, Limited, Mapped, open_source
from culm.source.remote import Remote, is_url
from culm.source.source import Source
from culm.task import Tasks


class DataConfig(Config):
    """What is learned from.

    path: files, folders, "stdlib" or dataset ids (see `open_source`); one or a list.
    prepared: a folder that `prepare` wrote, in place of a path.
    format: what a record means. held_out: share of the text that is kept for evaluation.
    fields: the names that the format asks for, each with the field of the files that holds it, as
        in {text: content, label: ratings.mean}; a dot leads into an object.
    tokenizer: the folder of the one that made the token shards (.bin) in path.
    split: what of a text file is a document. separator: the text between its documents, such as
        <|endoftext|>, in place of a split.
    invalid: what happens to bytes that are not UTF-8; with "skip", records that cannot be read are
        left out and counted.
    duplicates: whether all but the first of equal records are dropped.
    packing: "wrapped" puts documents end to end and cuts them into rows; "best_fit" keeps whole
        what fits into a row, in nearly as few rows; "auto" wraps text and fits dialogues.
    max_documents, max_bytes: read no more than this many records, and stop once this many bytes of
        text were read. A stream that is larger than the disk needs one of them.
    tasks: in place of a path, dialogues of these task generators; an on-policy objective asks their
        questions without end.
    questions: of the tasks, in all. turns: maximum number of questions in a dialogue.
    mix: corpora that are read together, each with a weight (`culm.data.mix`); one of them is the
        run's own, if there is a path, a prepared corpus or tasks. temperature: without weights, a
        share goes with the rows of a corpus to the power of 1 / temperature.
    curriculum: easy examples first; rows then hold examples of about the same difficulty.
    stream: tokenise the text of path while the run trains, in place of before; nothing is written.
    clean: stages that the text goes through before it is tokenised, in this order.
    workers: processes that clean; the result is the same for any number.
    ray: a Ray cluster that cleans and tokenises in place of them: its address, "auto" for the one
        that this machine belongs to, or "local" for one on this machine with `workers` processes.
    """

    path: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    prepared: Path | None = None
    format: Format = DocumentFormat()
    held_out: float = Field(default=0.02, ge=0, le=0.5)
    fields: dict[str, str] = Field(default={})
    tokenizer: Path | None = None
    split: DocumentSplit = "file"
    separator: str | None = Field(default=None, min_length=1)
    invalid: Invalid = "error"
    duplicates: Duplicates = "drop"
    packing: Packing = "auto"
    max_documents: PositiveInt | None = None
    max_bytes: PositiveInt | None = None
    tasks: Tasks = ()
    questions: PositiveInt = 20_000
    turns: PositiveInt = 1
    mix: Annotated[tuple[MixedCorpus, ...], BeforeValidator(listed)] = ()
    temperature: PositiveFloat = 1.0
    stream: Annotated[StreamConfig | None, MayChange(but=("", "shuffle"))] = None
    curriculum: Curriculum | None = None
    clean: Annotated[tuple[AnyStage, ...], BeforeValidator(listed)] = ()
    workers: Annotated[PositiveInt, MAY_CHANGE] = 1
    ray: Annotated[str | None, MAY_CHANGE] = None

    @model_validator(mode="after")
    def _one_origin(self) -> DataConfig:
        origins = {"path": self.path, "prepared": self.prepared, "tasks": self.tasks}
        given = " and ".join(name for name, value in origins.items() if value)
        if "and" in given or not (given or self.mix):
            raise ValueError(f"path: give one of path, prepared and tasks, not {given or 'none'}")
        check_mix(self.mix, own=bool(given))
        unweighted = bool(self.mix) and self.mix[0].weight is None
        refuse_unused(self, "temperature", unweighted, "a mix without weights")
        return self

    @model_validator(mode="after")
    def _mapped(self) -> DataConfig:
        for name in ("fields", "tokenizer"):
            refuse_unused(self, name, bool(self.path), "path")
        return self

    @model_validator(mode="after")
    def _cleaned(self) -> DataConfig:
        local = self.ray == "local"
        needed = "ray=local" if self.ray is not None else "clean or ray=local"
        refuse_unused(self, "workers", local or bool(self.clean and self.ray is None), needed)
        written = bool(self.path or self.tasks) and self.stream is None
        refuse_unused(self, "ray", written, "path or tasks, without stream,")
        if self.clean and not self.path:
            why = "tasks write their own text" if self.tasks else "a prepared corpus is token ids"
            raise ValueError(f"clean: {why}; it goes with path only")
        for stage in self.clean:
            if stage.documents_only and self.format.kind != "document":
                raise ValueError(
                    f"clean: the rules of {stage.kind} are for documents, and "
                    f"format={self.format.kind} is not; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _streamed(self) -> DataConfig:
        if self.stream is None:
            return self
        if not self.path or self.format.kind != "document":
            raise ValueError(
                "stream: it reads the text of path only; prepare dialogues and others before"
            )
        if self.held_out:
            raise ValueError(
                "held_out: a stream holds nothing out; set held_out=0, and evaluate with culm eval "
                "--text on a file of its own"
            )
        for name, given in (("mix", self.mix), ("curriculum", self.curriculum)):
            if given:
                raise ValueError(f"{name}: it needs a prepared corpus; leave stream out")
        if self.clean:
            raise ValueError("clean: it needs the complete corpus; clean it with culm prepare")
        if self.packing == "best_fit":
            raise ValueError("packing: a stream is wrapped, since best_fit needs all documents")
        return self

    @model_validator(mode="after")
    def _graded(self) -> DataConfig:
        if self.curriculum is not None and self.packing == "wrapped":
            raise ValueError(
                "packing: wrapped rows have easy and hard documents; a curriculum needs "
                "packing=best_fit"
            )
        if self.difficulty is not None and self.tasks:
            raise ValueError(
                "curriculum.difficulty: questions of tasks have no fields; use length, rarity or "
                "loss"
            )
        return self

    @property
    def difficulty(self) -> str | None:
        """The field of each record that holds its difficulty, if the curriculum reads one."""
        given = None if self.curriculum is None else self.curriculum.difficulty
        return given.name if isinstance(given, RecordField) else None

    @property
    def gives(self) -> Reads | None:
        """What an objective can read in it; None for a prepared corpus, whose manifest says so."""
        if self.corpus is not None:
            return None
        return "documents" if self.tasks and self.format.gives != "thoughts" else self.format.gives

    @property
    def corpus(self) -> Path | None:
        """The prepared folder whose tokenizer and held-out text are the run's: the one that is
        named, or the first of a mix without text of the run's own.
        """
        if self.prepared is not None or self.path or self.tasks:
            return self.prepared
        return self.mix[0].corpus

    def cleaner(self, out: Path | None = None) -> Cleaner:
        """What the text goes through first. out: the corpus to be; next to it cleaned text is kept
        until it is complete.
        """
        workers = Workers(self.workers, self.ray)
        return Cleaner(self.clean, workers, None if out is None else kept_beside(out))

    def open(self, seed: int = 0) -> Source:
        """The source that the settings mean; tasks draw their questions from the seed."""
        if self.tasks:
            return TaskSource(self.tasks, self.questions, self.turns, seed)
        sources = [self._opened(path) for path in self.path]
        source = sources[0] if len(sources) == 1 else Chain(sources)
        if self.tokenizer is not None and not any(isinstance(s, TokenFiles) for s in sources):
            raise SettingError("data.tokenizer: data.path names no token shards (.bin)")
        if self.fields:
            source = Mapped(source, self.fields)
        if self.max_documents is None and self.max_bytes is None:
            return source
        return Limited(source, self.format.texts, self.max_documents, self.max_bytes)

    def _opened(self, path: str) -> Source:
        folder = Path(path).expanduser()
        if is_prepared(path):
            return PreparedText(folder)
        shards = []
        if folder.is_dir() and self.tokenizer is not None:
            shards = [one for one in sorted(folder.iterdir()) if is_token_file(one)]
            others = sum(one.is_file() for one in folder.iterdir()) - len(shards)
        if shards and self.tokenizer is not None:
            return TokenFiles(path, shards, self.tokenizer, self.invalid, others)
        if is_token_file(path) and (is_url(path) or folder.is_file()):
            if self.tokenizer is None:
                raise SettingError(
                    f"data.tokenizer: {path} holds token ids; name the folder of the tokenizer "
                    "that made them"
                )
            file = Remote(path) if is_url(path) else folder
            return TokenFiles(path, [file], self.tokenizer, self.invalid)
        return open_source(path, self.split, self.invalid, self.separator)
