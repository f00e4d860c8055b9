"""What a plan reads of a corpus: all of it where it is small, or a sample of what it has read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from culm.data.example import RecordFormat, bytes_of
from culm.data.notes import Notes
from culm.source import Invalid, Limited
from culm.source.record import LeftOut, Record, fields_of
from culm.source.remote import File
from culm.source.source import LeftOutOnly, Source, bytes_in, found_in
from culm.tokenizer.tokenizer import Tokenizer

SIZE = 4 << 20  # bytes of text that are encoded at most
CHECKED = 64 << 20  # bytes of text that are read and checked at most, the last record excepted
GROUPS = 16  # parts of a sample that are compared
GROUP_BYTES = 1 << 15  # of a part that are encoded for that


@dataclass(frozen=True)
class Sample:
    """A source of its own: every record that was read, or evenly spread ones of them.

    every: whether it is every record that was read. read_records, read_bytes: of text that was
    read and checked. ended: whether that was all. total: bytes of text in the source; None if
    unknown. share: of the text that is here. left_out: counts of files and records that the source
    itself leaves out, by a phrase.
    """

    name: str
    records: Sequence[Record]
    every: bool
    read_records: int
    read_bytes: int
    ended: bool
    total: int | None
    share: float | None
    left_out: Mapping[str, int]

    @property
    def size(self) -> int | None:
        return None

    @property
    def files(self) -> Sequence[File]:
        return ()

    @property
    def whole(self) -> bool:
        return self.ended and self.every

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)

    def half(self) -> Sample:
        """Every second record."""
        return replace(self, records=self.records[::2], every=False)


def sample(
    source: Source,
    format: RecordFormat,
    invalid: Invalid = "error",
    size: int = SIZE,
    checked: int = CHECKED,
) -> Sample:
    """Read a source, or its beginning, and keep about this many bytes of text.

    Raises:
        SettingError: a record that was read does not have the shape of the format.
    """
    kept, ended, left_out = _Spread(size), True, LeftOutOnly()

    def lengths(record: Record) -> Iterator[int]:
        try:
            yield sum(map(bytes_of, format.contents(record)))
        except LeftOut:
            yield 0  # `prepare` counts it

    def skipped(error: ValueError) -> None:
        if isinstance(error, LeftOut):
            left_out(error)
        elif invalid == "skip":  # counted by `prepare`
            kept.records.append((Record({}, source.name, str(error), failure=type(error)), 0))
        else:
            Notes(invalid).skipped(error)

    for record, [length] in found_in(source, lengths, skipped):
        if kept.read_bytes >= checked:
            ended = False
            break
        kept.add(record, length)
    records = [record for record, _ in kept.records]
    written = sum(record.size or bytes_in(fields_of(record)) for record in records)
    text, mean = kept.bytes / max(1, written), kept.read_bytes / max(1, kept.read_records)
    total = kept.read_bytes if ended else _total(source, text, mean)
    share = kept.bytes / max(1, total) if total is not None else None
    return Sample(
        source.name, records, kept.stride == 1, kept.read_records, kept.read_bytes, ended, total,
        share, Counter(source.left_out) + left_out.counts,
    )  # fmt: skip


class _Spread:
    """Every n-th record of those read, with its bytes of text: about `size` bytes in all."""

    def __init__(self, size: int) -> None:
        self.records, self._size, self.stride = list[tuple[Record, int]](), size, 1
        self.bytes = self.read_records = self.read_bytes = 0

    def add(self, record: Record, length: int) -> None:
        if self.read_records % self.stride == 0:
            self.records.append((record, length))
            self.bytes += length
        while self.bytes > self._size and len(self.records) > 1:
            self.stride, self.records = 2 * self.stride, self.records[::2]
            self.bytes = sum(length for _, length in self.records)
        self.read_records, self.read_bytes = self.read_records + 1, self.read_bytes + length


def _total(source: Source, text: float, mean: float) -> int | None:
    """Bytes of text in a source of which the beginning was read; None if unknown.

    text: of a byte of its files. mean: bytes of text in a record.
    """
    if isinstance(source, Limited):
        limits = [_total(source.source, text, mean), source.bytes]
        limits.append(None if source.documents is None else round(source.documents * mean))
        return min((one for one in limits if one is not None), default=None)
    return None if source.size is None else round(source.size * text)


def relative_error(
    sample: Sample, format: RecordFormat, tokenizer: Tokenizer, half: bool
) -> float | None:
    """Of tokens per byte, when the rest of the text is like the sample: two standard errors.

    half: the tokenizer was trained on every second record. One that is trained on all text is
    between what it makes of those and of the others. None: the records are too few to say.
    """
    parts = [sample.records[::2], sample.records[1::2]]
    ratios = [list(_ratios(part, format, tokenizer)) for part in parts]
    if min(map(len, ratios)) < GROUPS // 2:
        return None
    every = [one for part in ratios for one in part]
    mean = fmean(every)
    unseen = abs(fmean(ratios[0]) - fmean(ratios[1])) / 2 if half else 0.0
    return (2 * stdev(every) / math.sqrt(len(every)) + unseen) / mean


def _ratios(
    records: Sequence[Record], format: RecordFormat, tokenizer: Tokenizer
) -> Iterator[float]:
    """Tokens per byte in each of the groups of consecutive texts, of which long ones are cut."""
    cut = [
        text[start : start + GROUP_BYTES]
        for text in _texts(records, format)
        for start in range(0, len(text), GROUP_BYTES)
    ]
    length = max(1, -(-len(cut) // GROUPS))
    for start in range(0, len(cut), length):
        texts, left = list[str](), GROUP_BYTES
        for text in cut[start : start + length]:
            texts.append(text[:left])
            left -= len(texts[-1])
            if left <= 0:
                break
        if size := bytes_in(texts):
            yield sum(map(len, tokenizer.encode_batch(texts))) / size


def _texts(records: Sequence[Record], format: RecordFormat) -> Iterator[str]:
    for record in records:
        if record.error is None:
            with suppress(LeftOut):
                yield from format.texts(record)
