"""Drafts by the model's own heads of multi-token prediction (`culm.model.mtp`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from culm.config import SettingError
from culm.engine.drafter import Choose, Window
from culm.engine.request import Running
from culm.model.context import Context
from culm.model.transformer import Transformer


class MTPDrafter:
    """Head k drafts the token k + 1 positions after the state that the trunk gave.

    A step reads 2 * heads tokens of each row: entries that heads made from rejected tokens are
    made again, and so are those at the end of a prompt, which had no next token yet.

    Raises:
        SettingError: the model has no heads.
    """

    with_mtp = True

    def __init__(self, model: Transformer) -> None:
        if not model.mtp:
            raise SettingError(
                "speculate: this model has no heads that draft tokens; train it with model.mtp, "
                "and load the folder of that run (exported and imported models have none)"
            )
        self.model = model
        self.size = len(model.mtp)
        self.rollback = 3 * self.size

    def prefill(self, tokens: Tensor, context: Context, following: Tensor) -> Tensor:
        """The heads read the prompt too."""
        return self.model.mtp_hidden(tokens, context, self.model.ahead(tokens, following))[0]

    def window(self, rows: Sequence[Running]) -> int:
        return 2 * self.size

    def draft(self, rows: Sequence[Running], window: Window | None, choose: Choose) -> None:
        assert window is not None
        starts, states, context = window
        width, heads, model = states.shape[1], self.size, self.model
        every = torch.arange(len(rows), device=states.device)
        # The state before the newest token: with that token, it is all that the first head reads.
        at = [row.length - 2 - start for row, start in zip(rows, starts, strict=True)]
        newest = torch.tensor(at, device=states.device)
        size = width + heads + 1
        known = [row.window(start, size) for row, start in zip(rows, starts, strict=True)]
        empty = [[0] * size] * (len(states) - len(rows))
        tokens = torch.tensor(known + empty, device=states.device)
        for by in range(1, heads + 1):
            states = model.mtp_step(by, states, tokens[:, by : by + width], context)
            chosen = choose(model.logits(model.mtp_normalized(by, states[every, newest])))
            tokens[every, newest + by + 1] = chosen
            for row, token in zip(rows, chosen.tolist(), strict=True):
                row.draft.append(token)
