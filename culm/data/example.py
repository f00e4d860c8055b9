"""What a format makes of a record."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from culm.config import Config
from culm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Example:
    """One document: its token ids, and which of them are learned."""

    tokens: list[int]
    learned: list[bool]


class RecordFormat(Config, ABC):
    """Base of every format. `group` examples in a row belong together (a pair: 2)."""

    group: ClassVar[int] = 1

    @abstractmethod
    def examples(self, record: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Example]:
        """The examples in a record.

        Raises:
            ValueError: the record does not have the shape of this format; says what it has.
        """


def shape_of(record: dict[str, Any]) -> str:
    """The keys of a record, for messages."""
    return "its keys are " + ", ".join(map(str, record)) if record else "it is empty"
