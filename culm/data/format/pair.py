"""A better and a worse answer to the same question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, ClassVar, Literal

from culm.batch import Reads
from culm.data.example import Dialogue, number_of
from culm.data.format.judged import JudgedFormat
from culm.data.format.messages import (
    Message,
    answer_of,
    asked_in,
    question_of,
    tools_of,
    with_answer,
)
from culm.data.format.ranking import LISTS, RankingFormat, scores_of
from culm.source.record import LeftOut, shape_of

OTHERS = (("response_j", "response_k"),)  # of StackExchange: the better and the worse answer


class PairFormat(JudgedFormat):
    """chosen, rejected: the fields of the answers; prompt: the field of the question.

    margin: the field with the margin by which the chosen answer is better, for reward models.
    Answers are strings, messages, or complete dialogues, whose last turns are compared. Without
    settings, `question`, `response_j` and `response_k` are read too, and ranked lists
    (`RankingFormat`), of which each answer is compared with each worse one (arXiv 2203.02155).
    """

    gives: ClassVar[Reads] = "pairs"
    group: ClassVar[int] = 2
    kind: Literal["pair"] = "pair"
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    margin: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return () if self.margin is None else ("margin",)

    def numbers(self, record: dict[str, Any]) -> Sequence[tuple[float, ...]]:
        return () if self.margin is None else [(number_of(record, self.margin),)] * 2

    def contents(self, record: dict[str, Any]) -> Iterator[Dialogue]:
        """The dialogue with the chosen answer, then the one with the rejected answer."""
        if self._is_ranked(record):
            yield from self._compared(record)
            return
        chosen, rejected = (self._dialogue(record, key) for key in self._fields(record))
        if chosen == rejected:
            raise LeftOut("pairs have the same chosen and rejected answer and are left out")
        if asked_in(chosen) != asked_in(rejected):
            raise LeftOut("pairs have answers to different questions and are left out")
        tools = tools_of(record)
        yield Dialogue(chosen, tools)
        yield Dialogue(rejected, tools)

    def _is_ranked(self, record: dict[str, Any]) -> bool:
        def has(*names: str) -> bool:  # a file with both kinds of records has null in some
            return any(dict.get(record, name) is not None for name in names)

        given = has(self.chosen, self.rejected) or self.margin is not None
        lists = any(isinstance(dict.get(record, name), list) for name in LISTS)
        return not given and lists and has("scores", "ranks")

    def _compared(self, record: dict[str, Any]) -> Iterator[Dialogue]:
        """Each two answers of a ranked list that are not equally good, the better one first."""
        answers = RankingFormat(prompt=self.prompt).contents(record)
        scored = list(zip(scores_of(record), answers, strict=True))
        for one, other in combinations(scored, 2):
            if one[0] != other[0]:
                better, worse = (one, other) if one[0] > other[0] else (other, one)
                yield from (better[1], worse[1])

    def _fields(self, record: dict[str, Any]) -> tuple[str, str]:
        """The fields of both answers; by default also those of other public sets."""
        given = self.chosen, self.rejected
        known = (given, *OTHERS) if given == ("chosen", "rejected") else (given,)
        return next((pair for pair in known if pair[0] in record and pair[1] in record), given)

    def _question(self, record: dict[str, Any]) -> list[Message] | None:
        asked = question_of(record, self.prompt)
        if asked is None and self.prompt == "prompt":
            asked = question_of(record, "question")
        return asked

    def _dialogue(self, record: dict[str, Any], key: str) -> list[Message]:
        answer = answer_of(record.get(key))
        if not answer and isinstance(record.get("label"), bool):
            raise ValueError(
                "it is one answer with a label and not a pair; culm train kto learns from such "
                "records"
            )
        if not answer:
            raise ValueError(f"no answer in {key!r}; {shape_of(record)}")
        whole = with_answer(record, self._question(record), answer)
        if whole is None:
            raise ValueError(f"no question in {self.prompt!r}; {shape_of(record)}")
        return whole
