"""What every stage of cleaning is: settings that build a step, and a step that works on texts.

A step sees one unit of a corpus at a time (a document, or all texts of a dialogue or pair), in any
process, and depends on nothing else: so the result is the same for any number of processes. What
must compare units with each other, as the search for near-duplicates does, gives marks of each unit
and an index that sees the marks in the order of the corpus.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from culm.config import Config

Changes = Counter[str]  # how often something was changed, by a phrase that follows the number


class Dropped(NamedTuple):
    """A unit that is left out. reason: a phrase that follows "dropped by gopher: "."""

    reason: str


class Step(ABC):
    """A stage with all that it needs in memory."""

    @abstractmethod
    def apply(self, texts: list[str], changes: Changes) -> list[str] | Dropped:
        """The texts of a unit after this stage, or why the unit is dropped."""

    def marks(self, texts: list[str]) -> np.ndarray | None:
        """(n,) uint32 by which the index of the stage compares units; None: it compares none."""
        return None


class Rewriter(Step):
    """Changes texts, each by itself."""

    @abstractmethod
    def rewrite(self, text: str, changes: Changes) -> str:
        """A text as it should be; counts what was changed."""

    def apply(self, texts: list[str], changes: Changes) -> list[str] | Dropped:
        return [self.rewrite(text, changes) for text in texts]


class Filter(Step):
    """Keeps a unit as it is, or drops it."""

    @abstractmethod
    def reason(self, text: str) -> str | None:
        """Why a unit with this text is dropped; None: it is kept."""

    def apply(self, texts: list[str], changes: Changes) -> list[str] | Dropped:
        why = self.reason("\n".join(texts))
        return texts if why is None else Dropped(why)


class Index(Protocol):
    """Compares units with those before them."""

    def seen(self, marks: np.ndarray) -> np.ndarray:
        """(n,) bool: which of these units are like one that was kept. marks: (n, size) uint32, in
        the order of the corpus; those that are not seen are kept from now on.
        """
        ...


class Stage(Config, ABC):
    """Base of every stage's settings.

    documents_only: whether its rules are about running text and mean nothing for dialogues.
    masks: whether it hides what should not stand in the samples of dropped text either.
    """

    kind: str
    documents_only: ClassVar[bool] = False
    masks: ClassVar[bool] = False

    @abstractmethod
    def build(self) -> Step:
        """The step; asked once in each process.

        Raises:
            SettingError: a library or a file that it needs is missing.
        """

    def index(self) -> Index | None:
        """What compares units, for a stage whose step gives marks."""
        return None

    @property
    def files(self) -> Sequence[Path]:
        """Files that decide what is kept, besides the settings."""
        return ()

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of libraries that decide what is kept."""
        return {}

    def notes(self) -> Mapping[str, int]:
        """What of its files is left out or not used, by a phrase that follows the number."""
        return {}
