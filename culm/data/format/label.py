"""Single answers, each with a label: good or bad, or a number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from culm.batch import Reads
from culm.data.example import Dialogue, number_of
from culm.data.format.judged import JudgedFormat
from culm.data.format.messages import dialogue_of

OTHERS = ("score", "rating")  # fields of a number, where there is no label


class LabelFormat(JudgedFormat):
    """label: the field that holds true or false, or a number. The dialogue is one of the chat
    format's shapes; its last turn is what the label is about. Without settings, `score` and
    `rating` are read too.
    """

    gives: ClassVar[Reads] = "labels"
    kind: Literal["label"] = "label"
    label: str = "label"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("label",)

    def numbers(self, record: dict[str, Any]) -> Sequence[tuple[float, ...]]:
        known = (self.label, *OTHERS) if self.label == "label" else (self.label,)
        field = next((name for name in known if dict.get(record, name) is not None), self.label)
        return [(number_of(record, field),)]

    def contents(self, record: dict[str, Any]) -> Iterator[Dialogue]:
        yield dialogue_of(record)
