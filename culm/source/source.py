"""What every source of records has in common, and how its records are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from culm.config import SettingError
from culm.log import say
from culm.source.record import LeftOut, Record, as_record
from culm.source.remote import File

T = TypeVar("T")


class Source(Protocol):
    """Each iteration gives all records.

    name: for messages. size: approximate bytes to read; None if unknown. left_out: counts of files
    and records that it never gives, by a phrase that follows the number. files: that it reads.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    @property
    def left_out(self) -> Mapping[str, int]: ...

    @property
    def files(self) -> Sequence[File]: ...

    def __iter__(self) -> Iterator[dict[str, Any]]: ...


def local_files(source: Source) -> Iterator[Path]:
    """The files of this machine that a source reads."""
    return (file for file in source.files if isinstance(file, Path))


def bytes_in(value: Any) -> int:
    """Size of all text in a record or a part of it, as UTF-8."""
    match value:
        case str():
            return len(value.encode("utf-8", "surrogatepass"))
        case dict():
            return sum(map(bytes_in, value.values()))
        case list() | tuple():
            return sum(map(bytes_in, value))
    return 0


def strings_in(value: Any) -> Iterator[str]:
    """All text in a record or a part of it, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings_in(part)


def found_in(
    source: Source,
    read: Callable[[Record], Iterator[T]],
    skipped: Callable[[ValueError], None],
) -> Iterator[tuple[Record, list[T]]]:
    """Each record with all that `read` finds in it.

    skipped: gets the error of a record that cannot be read, with its place, and raises it or counts
        the record, which is then left out.
    """
    for number, given in enumerate(source, start=1):
        record = as_record(given, f"{source.name}: record {number}")
        try:
            if record.error is not None:
                raise record.failure(record.error)
            found = list(read(record))
        except (ValueError, RecursionError) as error:
            bad = bad_record(record.place, error)
            skipped(bad)
            continue
        yield record, found


class LeftOutOnly:
    """For `found_in`: counts what cannot be learned from by its reason, and refuses what cannot be
    read.
    """

    def __init__(self) -> None:
        self.counts = Counter[str]()

    def __call__(self, error: ValueError) -> None:
        if not isinstance(error, LeftOut):
            raise SettingError(f"{error}; correct it")
        self.counts[str(error)] += 1

    def say(self) -> None:
        """A sentence for each reason, for the person at the terminal."""
        for phrase, number in self.counts.items():
            say(f"{number:,} {phrase}.")


def bad_record(place: str, error: ValueError | RecursionError) -> ValueError:
    """The error for a record that cannot be read; for one that is left out, its reason."""
    if isinstance(error, SettingError | LeftOut):
        return error
    if isinstance(error, RecursionError):
        return SettingError(f"{place}: nested too deeply")
    return SettingError(f"{place}: {error}")
