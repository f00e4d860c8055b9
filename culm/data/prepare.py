"""Records to token shards, in one pass over a corpus of any size.

    source -> units -> cleaned -> divided: duplicates dropped, a split for each -> encoded -> shards

Memory holds one block of the source and one batch of documents. Only the
digests that find exact duplicates grow with the corpus: about 100 bytes of memory per document, or
1 GB for ten million.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from pathlib import Path

import numpy as np

from culm.atomic import atomic
from culm.config import SettingError
from culm.data.clean.cleaner import Cleaner
from culm.data.difficulty import COLUMN
from culm.data.divide import Divided, Divider, Duplicates, Unit
from culm.data.example import Example, RecordFormat
from culm.data.format.document import DocumentFormat
from culm.data.kept import Kept
from culm.data.manifest import CONTENTS, Manifest, is_corpus
from culm.data.notes import Notes, remarks_of
from culm.data.origin import origin_of, revisions_of
from culm.data.shards import Document, SplitWriter
from culm.data.units import Numbers, units_of
from culm.files import refuse_existing
from culm.log import progress, say
from culm.source import Invalid
from culm.source.record import not_used
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
    cleaner: the stages that the text goes through first.
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
    with _new_folder(Path(folder), overwrite) as work:
        origin, revisions = origin_of(source), revisions_of(source)
        names = ("train", "held_out") if held_out else ("train",)
        advice = CUT if isinstance(format, DocumentFormat) else ""
        divider = Divider(held_out, seed, advice, duplicates)
        notes = Notes(invalid, tokenizer.specials)
        notes.counts.update(cleaner.notes)
        kept = Kept(Path(folder), format, tokenizer)
        with (
            _writers(work, names, format, tokenizer, difficulty) as writers,
            progress("prepare", source.size, "bytes") as bar,
        ):
            units = units_of(source, format, notes, difficulty, bar.advance)
            divided = divider.divide(cleaner.clean(units), source.name)
            for name, unit, documents in _encoded(divided, format, tokenizer, notes, kept):
                writers[name].append(documents, unit.size)
        notes.counts.update(source.left_out)  # some of which a source counts while it is read
        splits = {name: one.facts() for name, one in writers.items() if one.documents}
        if "train" not in splits:
            left_out = [
                *notes.remarks,
                *remarks_of(dict(chain(*(f.remarks for f in cleaner.facts)))),
            ]
            why = " ".join(left_out) or "it holds no document"
            raise SettingError(f"{source.name}: nothing to read: {why}")
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
    cleaner.forget()
    kept.forget()
    if kept.found:
        say(f"{kept.found:,} batches of text were tokenised before, and not again.")
    return manifest


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


def _encoded(
    divided: Divided,
    format: RecordFormat,
    tokenizer: Tokenizer,
    notes: Notes,
    kept: Kept,
) -> Iterator[tuple[str, Unit, list[Document]]]:
    for batch in _batches(divided):
        documents = _once(format, [unit for _, unit in batch], tokenizer, notes, kept)
        for (split, unit), found in zip(batch, documents, strict=True):
            if isinstance(found, ValueError | RecursionError):
                notes.skipped(bad_record(unit.place, found))
            else:
                yield split, unit, found


def _once(
    format: RecordFormat, units: Sequence[Unit], tokenizer: Tokenizer, notes: Notes, kept: Kept
) -> Iterator[list[Document] | ValueError | RecursionError]:
    """As `_documents`, from what a killed process left, where it is there."""
    if sum(unit.size for unit in units) < BATCH:  # the last one, or a small corpus
        yield from _documents(format, units, tokenizer, notes)
        return
    key = kept.key(units)
    if (known := kept.read(key)) is not None:
        found, counts = known
        notes.counts.update(counts)
        yield from found
        return
    before, done = Counter(notes.counts), list[list[Document]]()
    for found_one in _documents(format, units, tokenizer, notes):
        if isinstance(found_one, list):
            done.append(found_one)
        yield found_one
    if len(done) == len(units):  # an error is found again
        kept.write(key, done, Counter(notes.counts) - before)


def _documents(
    format: RecordFormat, units: Sequence[Unit], tokenizer: Tokenizer, notes: Notes
) -> Iterator[list[Document] | ValueError | RecursionError]:
    """Those of each unit, or why it has none, one after the other: an example needs 20 times the
    memory of its arrays.
    """
    start = 0
    while start < len(units):
        contents = [content for unit in units[start:] for content in unit.contents]
        examples = format.encode(contents, tokenizer)
        for unit in units[start:]:
            start += 1
            try:
                each = unit.numbers or [()] * len(unit.contents)
                yield [
                    _document(next(examples), format, own, unit.difficulty, notes) for own in each
                ]
            except (ValueError, RecursionError) as error:
                yield error
                break  # `examples` ended with it


def _batches(divided: Divided) -> Iterator[list[tuple[str, Unit]]]:
    batch: list[tuple[str, Unit]] = []
    size = 0
    for split, unit in divided:
        batch.append((split, unit))
        size += unit.size
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def _document(
    example: Example, format: RecordFormat, numbers: Numbers, difficulty: Numbers, notes: Notes
) -> Document:
    notes.counts.update(not_used("messages", example.unread, "the chat template does not use"))
    tokens = np.array(example.tokens, dtype=np.uint32)
    learned = np.array(example.learned, dtype=bool)
    hard = tuple(np.array([number]) for number in difficulty)
    if format.per == "row":
        return tokens, learned, (*(np.array([number]) for number in numbers), *hard)
    column = np.full(len(tokens), np.nan, dtype=np.float32)
    column[learned] = numbers
    return tokens, learned, (column, *hard)


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
