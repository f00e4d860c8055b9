"""Records to token shards, in one pass over a corpus of any size.

    source -> units -> cleaned -> divided: duplicates dropped, a split for each -> encoded -> shards

Memory holds one block of the source and one batch of documents. Only the
digests that find exact duplicates grow with the corpus: about 100 bytes of memory per document, or
1 GB for ten million.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from culm.atomic import atomic
from culm.config import SettingError
from culm.data.clean.cleaner import Cleaner
from culm.data.difficulty import COLUMN
from culm.data.divide import Divided, Divider, Duplicates, Unit
from culm.data.encode import Encoded, Encoder
from culm.data.example import RecordFormat
from culm.data.format.document import DocumentFormat
from culm.data.kept import Kept
from culm.data.manifest import CONTENTS, Manifest, SplitFacts, is_corpus
from culm.data.notes import Notes, remarks_of
from culm.data.origin import origin_of, revisions_of
from culm.data.shards import Document, SplitWriter
from culm.data.units import units_of
from culm.data.workers import HERE, Pool, Workers
from culm.files import refuse_existing
from culm.log import progress, say
from culm.source import Invalid
from culm.source.source import Source, bad_record
from culm.tokenizer.tokenizer import Tokenizer

BATCH = 1 << 20  # bytes of text that are encoded together

CUT = (
    "data.format={kind: document, max_characters: 10000} to cut it into many, "
    "data.split=paragraphs if they are its documents, or "
)


def prepare(
    source: Source,
    format: RecordFormat,
    tokenizer: Tokenizer,
    folder: str | Path,
    held_out: float = 0.02,
    seed: int = 0,
    *,
    duplicates: Duplicates = "drop",
    invalid: Invalid = "error",
    difficulty: str | None = None,
    cleaner: Cleaner | None = None,
    overwrite: bool = False,
    command: Sequence[str] = (),
) -> Manifest:
    """Write the token shards of a corpus to a new folder.

    held_out: share of the text in the split "held_out", chosen by a hash of each document and the
    seed (`culm.data.divide`); one document at least, or a part of it. With 0 there is no such
    split. All other text is in the split "train". The text decides, not the tokens: the splits are
    the same for every tokenizer.
    duplicates: whether only the first of equal records is kept. invalid: with "skip", a record that
    cannot be read is left out and counted. difficulty: a field with a number, for a curriculum.
    cleaner: the stages that the text goes through first. Its workers tokenise too, if they are a
    cluster; on one machine the tokenizer has a thread for each core itself.
    The folder appears when it is complete, or not at all; a call after a kill tokenises no batch of
    text again (`culm.data.kept`). overwrite: replace an older corpus there.
    command: arguments of `culm prepare`, for the manifest.

    Raises:
        SettingError: there is nothing to read, a record has an unknown shape, the corpus cannot be
            divided, the disk is full, or the folder exists.
        InUseError: another process is writing the folder.
    """
    format.check(tokenizer)
    cleaner = Cleaner(()) if cleaner is None else cleaner
    notes = Notes(invalid, tokenizer.specials)
    notes.counts.update(cleaner.notes)
    advice = CUT if isinstance(format, DocumentFormat) else ""
    divider = Divider(held_out, seed, advice, duplicates)
    kept = Kept(Path(folder), format, tokenizer)
    text = _Text(source, format, tokenizer, difficulty, cleaner, divider, notes, kept)
    with _new_folder(Path(folder), overwrite) as work:
        origin, revisions = origin_of(source), revisions_of(source)
        splits = text.write(work, ("train", "held_out") if held_out else ("train",))
        manifest = Manifest(
            source=source.name, origin=origin, revisions=revisions, held_out=held_out, seed=seed,
            dropped=divider.dropped, clean=cleaner.facts, notes=notes.counts, format=format.kind,
            gives=format.gives, group=format.group, columns=format.columns, per=format.per,
            difficulty=difficulty, prepare=tuple(command),
            tokenizer=tokenizer.fingerprint,
            template=None if format.kind == "document" else tokenizer.template_fingerprint,
            vocabulary=tokenizer.vocabulary, end_of_text=tokenizer.end_of_text, splits=splits,
        )  # fmt: skip
        tokenizer.save(work / "tokenizer")
        manifest.write(work)
    text.forget()
    return manifest


@dataclass
class _Text:
    """A source on its way to tokens, and what is counted on it."""

    source: Source
    format: RecordFormat
    tokenizer: Tokenizer
    difficulty: str | None
    cleaner: Cleaner
    divider: Divider
    notes: Notes
    kept: Kept

    def write(self, folder: Path, names: Sequence[str]) -> dict[str, SplitFacts]:
        """Read, clean, divide and tokenise all of it; the facts of the splits that are not empty.

        Raises:
            SettingError: nothing is left to train on.
        """
        source, format, notes = self.source, self.format, self.notes
        with (
            _encoders(self.cleaner.workers, format, self.tokenizer) as pool,
            _writers(folder, names, format, self.tokenizer, self.difficulty) as writers,
            progress("prepare", source.size, "bytes") as bar,
        ):
            units = units_of(source, format, notes, self.difficulty, bar.advance)
            divided = self.divider.divide(self.cleaner.clean(units), source.name)
            for name, unit, documents in _encoded(divided, pool, notes, self.kept):
                writers[name].append(documents, unit.size)
        notes.counts.update(source.left_out)  # some of which a source counts while it is read
        splits = {name: one.facts() for name, one in writers.items() if one.documents}
        if "train" not in splits:
            raise SettingError(f"{source.name}: nothing to read: {self._why_empty()}")
        return splits

    def _why_empty(self) -> str:
        dropped = dict(chain(*(facts.remarks for facts in self.cleaner.facts)))
        left_out = [*self.notes.remarks, *remarks_of(dropped)]
        return " ".join(left_out) or "it holds no document"

    def forget(self) -> None:
        """Remove what was kept for a call after a kill."""
        self.cleaner.forget()
        self.kept.forget()
        if self.kept.found:
            say(f"{self.kept.found:,} batches of text were tokenised before, and not again.")


@dataclass
class _Batch:
    """units: each with its split. key: to keep it by; None: it is not, or is kept already.
    encoded: waits for its documents, and for what was counted.
    """

    units: list[tuple[str, Unit]]
    key: str | None
    encoded: Callable[[], Encoded]


@contextmanager
def _writers(
    folder: Path,
    splits: Sequence[str],
    format: RecordFormat,
    tokenizer: Tokenizer,
    difficulty: str | None,
) -> Iterator[dict[str, SplitWriter]]:
    """A writer for each split, closed at the end."""
    columns = format.columns if difficulty is None else (*format.columns, COLUMN)
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                closing(SplitWriter(folder / name, tokenizer.vocabulary, columns))
            )
            for name in splits
        }


def _encoders(
    workers: Workers, format: RecordFormat, tokenizer: Tokenizer
) -> AbstractContextManager[Pool]:
    return (HERE if workers.ray is None else workers).pool(partial(Encoder, format, tokenizer))


def _encoded(
    divided: Divided, pool: Pool, notes: Notes, kept: Kept
) -> Iterator[tuple[str, Unit, list[Document]]]:
    """The documents of each unit, in the order of the corpus."""
    for batch in pool.ready(_given(some, pool, kept) for some in _batches(divided)):
        yield from _documents(batch, notes, kept)


def _given(batch: list[tuple[str, Unit]], pool: Pool, kept: Kept) -> _Batch:
    """A batch that is given away to be encoded, unless a killed process left it."""
    units, key = [unit for _, unit in batch], None
    if sum(unit.size for unit in units) >= BATCH:  # not the last one, or a small corpus
        key = kept.key(units)
        if (known := kept.read(key)) is not None:
            return _Batch(batch, None, lambda: known)
    return _Batch(batch, key, pool.submit(units))


def _documents(
    batch: _Batch, notes: Notes, kept: Kept
) -> Iterator[tuple[str, Unit, list[Document]]]:
    encoded, counts = batch.encoded()
    done = [found for found in encoded if isinstance(found, list)]
    if batch.key is not None and len(done) == len(encoded):  # an error is found again
        kept.write(batch.key, done, counts)
    notes.counts.update(counts)
    for (split, unit), found in zip(batch.units, encoded, strict=True):
        if isinstance(found, ValueError | RecursionError):
            notes.skipped(bad_record(unit.place, found))
        else:
            yield split, unit, found


def _batches(divided: Divided) -> Iterator[list[tuple[str, Unit]]]:
    batch: list[tuple[str, Unit]] = []
    size = 0
    for split, unit in divided:
        batch.append((split, replace(unit, held_out=split == "held_out")))
        size += unit.size
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    yield batch


@contextmanager
def _new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which takes its name when it is complete and is removed on any failure."""
    refuse_existing(folder, overwrite)
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not is_corpus(folder):
        raise SettingError(f"{folder}: holds other files than a corpus; choose another folder")
    try:
        with atomic(folder, replaces=CONTENTS) as work:
            work.mkdir()
            yield work
    except OSError as error:
        what = "choose another folder, or free some space if the disk is full"
        raise SettingError(f"{error}; {what}") from None
