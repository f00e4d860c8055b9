"""Drafts from the text itself: prompt lookup, without a second model.

Where the last tokens have occurred before, what followed them then is drafted. It pays where texts
repeat themselves or their prompt: code that is edited, summaries, questions about a document.

    ... the quick brown fox ... the quick    ->  draft: brown fox ...
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from culm.engine.drafter import Choose, Window
from culm.engine.request import Running
from culm.model.context import Context
from culm.model.transformer import Transformer

SIZE = 4  # tokens of a draft
LONGEST, SHORTEST = 4, 2  # tokens of a sequence that is looked up, the longest first


class NgramDrafter:
    """Looks up the last tokens of each row in its own prompt and output.

    Only rows whose last tokens have occurred before get a draft; a step in which no row has one
    reads one token of each, as plain decoding does.
    """

    size = SIZE
    rollback = 2 * SIZE
    with_mtp = False

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self._indices: dict[int, NgramIndex] = {}  # by request

    def prefill(self, tokens: Tensor, context: Context, following: Tensor) -> Tensor:
        return self.model.hidden(tokens, context)

    def window(self, rows: Sequence[Running]) -> int:
        return 1 + max(len(row.draft) for row in rows)

    def draft(self, rows: Sequence[Running], window: Window | None, choose: Choose) -> None:
        known, self._indices = self._indices, {}
        for row in rows:
            if not row.finish:
                index = self._indices[row.id] = known.get(row.id) or NgramIndex()
                index.extend(row.tokens_from(len(index.tokens)))
                row.draft.extend(index.continuation(self.size))


class NgramIndex:
    """Tokens, and where each short sequence of them was followed by another token."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._next: dict[
            tuple[int, ...], int
        ] = {}  # sequence -> position after its last occurrence

    def extend(self, new: Sequence[int]) -> None:
        """Add tokens."""
        for token in new:
            end = len(self.tokens)
            for count in range(SHORTEST, min(LONGEST, end) + 1):
                self._next[tuple(self.tokens[end - count :])] = end
            self.tokens.append(token)

    def continuation(self, size: int) -> list[int]:
        """`size` tokens that followed the last ones before; none if those are new.

        A text that repeats itself goes on repeating, beyond its own end.
        """
        end = len(self.tokens)
        for count in range(min(LONGEST, end), SHORTEST - 1, -1):
            if start := self._next.get(tuple(self.tokens[end - count :])):
                period = end - start
                return [self.tokens[start + i % period] for i in range(size)]
        return []
