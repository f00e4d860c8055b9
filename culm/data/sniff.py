"""What a source holds, from its first records: kinds of files, the format, and samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from culm.config import SettingError
from culm.data.example import RecordFormat
from culm.data.format.chat import ChatFormat
from culm.data.format.document import DocumentFormat
from culm.data.format.label import LabelFormat
from culm.data.format.pair import PairFormat
from culm.data.format.prompt import PromptFormat
from culm.data.format.ranking import RankingFormat
from culm.data.format.steps import StepsFormat
from culm.data.spans import spans_of
from culm.data.token_files import PreparedText, TokenFiles
from culm.source import Chain, Files, Invalid, Limited, Mapped
from culm.source.compressed import method_of
from culm.source.hub import Hub
from culm.source.kinds import kind_in, kind_of
from culm.source.record import LeftOut, Record, fields_of, shape_of
from culm.source.source import Source, found_in
from culm.tokenizer.tokenizer import Tokenizer

READ = 5  # records
LONGEST = 1 << 12  # characters of a document that are encoded for a sample
# The first that reads most records is meant. One of labels is meant only where it says `label`,
# since many a record of a dialogue has a score.
FORMATS: Sequence[RecordFormat] = (
    DocumentFormat(), PairFormat(), RankingFormat(), StepsFormat(), LabelFormat(), ChatFormat(),
    PromptFormat(),
)  # fmt: skip

Spans = list[tuple[str, bool]]  # text, and whether it is learned


def first_records(source: Source, invalid: Invalid, count: int = READ) -> list[Record]:
    """The first records that can be read.

    Raises:
        SettingError: one cannot be read, unless `invalid` skips it.
    """

    def skipped(error: ValueError) -> None:
        if not isinstance(error, LeftOut) and invalid != "skip":  # `prepare` counts them
            raise SettingError(f"{error}; correct it, or set data.invalid=skip to leave it out")

    found = found_in(source, lambda record: iter([record]), skipped)
    return [record for record, _ in islice(found, count)]


def format_of(records: Sequence[Record], name: str) -> RecordFormat:
    """The format that reads most records. name: of their source, for messages.

    Raises:
        SettingError: none reads any; says what the first record has.
    """
    counts = [sum(_reads(format, record) for record in records) for format in FORMATS]
    if max(counts):
        return FORMATS[counts.index(max(counts))]
    known = ", ".join(format.kind for format in FORMATS)
    shape = shape_of(fields_of(records[0]))
    raise SettingError(
        f"{name}: its records are of no format that is read ({known}): {shape}; name the fields, "
        "as in data.fields='{text: FIELD}', or give --format"
    )


def _reads(format: RecordFormat, given: Record) -> bool:
    record = type(given)(fields_of(given), given.place)
    if isinstance(format, LabelFormat) and format.label not in record:
        return False
    try:
        format.numbers(record)
        return bool(list(format.contents(record)))
    except LeftOut:
        return True
    except (ValueError, RecursionError):
        return False


def samples(
    records: Sequence[Record], format: RecordFormat, tokenizer: Tokenizer
) -> Iterator[Spans]:
    """What the model would see of each record; of a long document the beginning. What the format
    does not read is left to `prepare`, which refuses or counts it.
    """
    for record in records:
        try:
            contents = [
                one[:LONGEST] if isinstance(one, str) else one for one in format.contents(record)
            ]
            for example in format.encode(contents, tokenizer):
                ids, learned = np.array(example.tokens), np.array(example.learned)
                yield spans_of([(ids, learned)], tokenizer)
        except (ValueError, RecursionError):
            continue


def kinds_in(source: Source) -> Iterator[str]:
    """A sentence for each part of a source: what it is read as."""
    match source:
        case Chain():
            for one in source.sources:
                yield from kinds_in(one)
        case Limited() | Mapped():
            yield from kinds_in(source.source)
        case Files():
            found = Counter(
                " ".join(filter(None, (kind_of(file) or kind_in(file), method_of(file))))
                for file in source.paths
            )
            kinds = ", ".join(f"{number:,} {kind}" for kind, number in found.items())
            yield f"{source.name}: read as {kinds}."
        case TokenFiles() | PreparedText():
            yield f"{source.name}: read as token shards, decoded."
        case Hub():
            yield f"{source.name}: read as a dataset of the Hugging Face hub."
        case _:
            yield f"{source.name}."
