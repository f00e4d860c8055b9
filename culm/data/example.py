"""What a format makes of a record."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

from culm.batch import Reads
from culm.config import Config
from culm.source.record import Row, kind_of_value, number_in, shape_of
from culm.source.source import bytes_in, strings_in
from culm.tokenizer.tokenizer import Tokenizer

LARGEST = 3.4e38  # of fp32


class Dialogue(NamedTuple):
    """messages: role and content, in order. tools: that the assistant may call."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None


Content = str | Dialogue


def bytes_of(content: Content) -> int:
    """Of its text as UTF-8, without the roles of messages."""
    if isinstance(content, str):
        return bytes_in(content)
    said = [{key: one[key] for key in one if key != "role"} for one in content.messages]
    return bytes_in(said) + bytes_in(content.tools)


@dataclass(frozen=True, slots=True)
class Example:
    """One document: its token ids, and which of them are learned.

    unread: keys of its messages that the chat template does not use. remarks: what else the
    template lost, as phrases to count.
    """

    tokens: list[int]
    learned: list[bool]
    unread: frozenset[str] = frozenset()
    remarks: frozenset[str] = frozenset()

    def until_its_end(self) -> Example:
        """Without what follows the last learned token, as many templates write a line break there.

        A reward is the score at the last token, and completions of a rollout end with their turn.
        """
        end = len(self.learned) - self.learned[::-1].index(True)
        return replace(self, tokens=self.tokens[:end], learned=self.learned[:end])


class RecordFormat(Config, ABC):
    """Base of every format. A record is first divided into contents, which know no tokenizer; each
    becomes one example.

    gives: what an objective can read in its examples. group: how many in a row belong together;
        0: all of a record. The column `place` then counts them from 0.
    per: whether each example carries a number in each column, or each of its learned tokens one.
    """

    kind: str
    gives: ClassVar[Reads] = "documents"
    group: ClassVar[int] = 1
    per: ClassVar[Literal["row", "token"]] = "row"

    @property
    def plain(self) -> Self:
        """The same for held-out text, without what a setting makes random for training."""
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the numbers that each example carries, as `Batch.extra` names them."""
        return ()

    def numbers(self, record: dict[str, Any]) -> Sequence[tuple[float, ...]]:
        """The numbers of each content of a record: one in each column, or in the only column one
        for each learned token; empty where there are no columns.

        Raises:
            ValueError: it has none, or something else.
        """
        return ()

    def check(self, tokenizer: Tokenizer) -> None:
        """Whether the tokenizer can encode such contents; asked before the first record.

        Raises:
            SettingError: it cannot.
        """
        _ = tokenizer.chat  # a missing template is no fault of a record

    @abstractmethod
    def contents(self, record: dict[str, Any]) -> Iterator[Content]:
        """What a record says.

        Raises:
            LeftOut: nothing can be learned from it.
            ValueError: the record does not have the shape of this format; says what it has.
        """

    @abstractmethod
    def encode(self, contents: Sequence[Any], tokenizer: Tokenizer) -> Iterator[Example]:
        """The example of each content, in order.

        Raises:
            ValueError: one cannot be written in the tokenizer's chat template.
        """

    def texts(self, record: dict[str, Any]) -> Iterator[str]:
        """What a tokenizer is trained on: all that is said in the record.

        Raises:
            ValueError: as `contents`.
        """
        yield from strings_in(record)


def number_of(record: dict[str, Any], key: str) -> float:
    """The finite number, or the truth value, in a field of a record.

    Raises:
        ValueError: there is something else.
    """
    value = record.get(key)
    if isinstance(record, Row) and isinstance(value, str):
        value = number_in(value)
    return _number(value, record, key)


def numbers_of(record: dict[str, Any], key: str) -> list[float]:
    """The same of a list in a field of a record."""
    values = record.get(key)
    if not isinstance(values, list):
        raise ValueError(f"no list of numbers in {key!r}; {shape_of(record)}")
    return [_number(value, record, key) for value in values]


def _number(value: Any, record: dict[str, Any], key: str) -> float:
    if isinstance(value, int | float) and abs(value) > LARGEST:
        raise ValueError(f"the number in {key!r} is not finite in fp32")
    if not isinstance(value, bool | int | float) or math.isnan(value):
        inside = value is not record.get(key)  # in a list, of which the shape says no more
        given = f", but {kind_of_value(value)} in its list" if inside else ""
        raise ValueError(f"no number in {key!r}{given}; {shape_of(record)}")
    return float(value)
