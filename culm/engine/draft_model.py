"""Drafts by a second, smaller model with the same vocabulary (arXiv 2211.17192, 2302.01318).

It has a cache of its own, in which row i is in slot i as well. What it has read is compared with
what each row has become: rejected tokens are written over, and a row that is new, or was
interrupted, is read in parts while the others go on.

row          t t t t t t x           x: the newest token, which the model chose instead of a draft
has read     t t t t t d             the last d was rejected
read now               [ t x ]       then each draft but the last: d d d
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from torch import Tensor

from culm.config import SettingError
from culm.engine.drafter import Choose, Window
from culm.engine.request import Request, Running
from culm.engine.runner import Runner
from culm.model.context import Context
from culm.model.transformer import Transformer

SIZE = 4  # tokens of a draft
PART = 256  # tokens of new rows that are read between two steps, so that others hardly wait


@dataclass
class _Known:
    """What the draft model has read of a row: this many of its tokens, and drafts after them."""

    slot: int
    tokens: int = 0
    drafts: list[int] = field(default_factory=list)


class ModelDrafter:
    """A draft of SIZE tokens for each row, each sampled as the engine samples from the model.

    draft: the smaller model. slots, length: as in `Engine`.

    Raises:
        SettingError: it has another vocabulary, or a shorter context than a slot.
    """

    size = SIZE
    rollback = 2 * SIZE
    with_mtp = False

    def __init__(self, model: Transformer, draft: Transformer, slots: int, length: int) -> None:
        theirs, ours = draft.config.vocabulary, model.config.vocabulary
        if theirs != ours:
            raise SettingError(
                f"speculate: the draft model has {theirs} tokens and the model has {ours}; use one "
                "with the same tokenizer"
            )
        if draft.config.context < length:
            raise SettingError(
                f"speculate: the draft model's context of {draft.config.context} is shorter than "
                f"the {length} tokens of a slot; set a smaller context"
            )
        self.model = model
        self._runner = Runner(draft, slots, length, "plain", True, None, rollback=self.rollback)
        self._known: dict[int, _Known] = {}  # by request

    def prefill(self, tokens: Tensor, context: Context, following: Tensor) -> Tensor:
        return self.model.hidden(tokens, context)

    def window(self, rows: Sequence[Running]) -> int:
        return 1 + max(len(row.draft) for row in rows)

    def draft(self, rows: Sequence[Running], window: Window | None, choose: Choose) -> None:
        self._follow(rows)
        self._read_new(rows)
        copies = [_first(row, min(self._known[row.id].tokens + 2, row.length)) for row in rows]
        width = 2
        while open_rows := [place for place, row in enumerate(rows) if self._may_grow(row)]:
            logits, _ = self._runner.advance(copies, self._runner.slots, width)
            tokens = choose(logits[:, 0]).tolist()
            for place in open_rows:
                rows[place].draft.append(tokens[place])
                copies[place].output.append(tokens[place])
            width = 1
        for row, copy in zip(rows, copies, strict=True):
            known = self._known[row.id]
            if width == 1:
                known.tokens = max(copy.length - len(row.draft), known.tokens)
            known.drafts = row.draft[:-1]

    def _may_grow(self, row: Running) -> bool:
        """Whether another draft token is of use, and the row has been read."""
        left = row.request.max_tokens - len(row.output) - 1
        is_read = self._known[row.id].tokens >= row.length - 2
        return is_read and not row.finish and len(row.draft) < min(left, SIZE)

    def _follow(self, rows: Sequence[Running]) -> None:
        """Rows have moved, grown and ended: slot i becomes row i."""
        before, self._known = self._known, {}
        for slot, row in enumerate(rows):
            known = before.get(row.id)
            if known is None or known.slot < slot:  # another row may have been copied over it
                known = _Known(slot)
            pairs = zip(known.drafts, row.tokens_from(known.tokens), strict=False)
            known.tokens += sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            known.drafts = []
            if known.slot > slot:
                self._runner.cache.copy(known.slot, slot, known.tokens)
                known.slot = slot
            self._known[row.id] = known

    def _read_new(self, rows: Sequence[Running]) -> None:
        """Read up to PART tokens of rows, except for the last two of each."""
        left = PART
        for slot, row in enumerate(rows):
            known = self._known[row.id]
            end = min(row.length - 2, known.tokens + left)
            if end > known.tokens and not row.finish:
                self._runner.read(_first(row, end), known.tokens, end, slot)
                left -= end - known.tokens
                known.tokens = end


def _first(row: Running, tokens: int) -> Running:
    """The first tokens of a row, for a model without adapters."""
    prompt = row.request.prompt[:tokens]
    return Running(row.id, Request(prompt), row.seed, row.output[: tokens - len(prompt)])
