"""Speculative decoding: heads of multi-token prediction draft, the model reads and decides.

known to the row     t t t t t t t
drafted by heads                   d d          head k drafts the token k + 1 places behind
read at once               [ t t t d d ]        the state that the trunk had made (`culm.model.mtp`)
drawn by the model                 d x          the first is accepted, the second is not

Every place is drawn from the model itself, by the random number that belongs to it, and a draft
token is accepted if it is what was drawn. So a request gets the tokens of plain decoding, up to the
rounding of products of other shapes, where rejection sampling (arXiv 2211.17192) keeps only their
distribution; for that it accepts a little less. Drafts are drawn by the same numbers, so that
heads and model choose alike where they agree. Keys and values of few bits (`cache`) are rounded
again where a draft is rolled back, and texts may then differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from culm.config import SettingError
from culm.engine.request import Running
from culm.model.cache import StateCache
from culm.model.context import Context
from culm.model.transformer import Transformer

Choose = Callable[[Tensor], Tensor]


class Window(NamedTuple):
    """What a step has read of each of N rows.

    starts: places of the first tokens. states: (B, W, E) that the trunk made of them, B >= N.
    context: as it was behind the trunk.
    """

    starts: list[int]
    states: Tensor
    context: Context


def check_speculation(model: Transformer) -> None:
    """SettingError if the model has no heads, or keeps what cannot go back to an earlier token."""
    if not model.mtp:
        raise SettingError(
            "speculate: this model has no heads that draft tokens; train it with model.mtp, "
            "and load the folder of that run (exported and imported models have none)"
        )
    layers = model.cache(1, 1).layers
    if any(isinstance(layer, StateCache) for layer in layers):
        raise SettingError(
            "speculate: a layer of this model keeps a state, which cannot be rolled back to the "
            "token before a rejected one; leave it out"
        )


def window_size(heads: int) -> int:
    """Tokens that a step reads of each row: the entries that heads made from rejected tokens, and
    at the end of a prompt those for which they had no next token yet, are made again.
    """
    return 2 * heads


def rollback(heads: int) -> int:
    """The most tokens between what a step has read and where the next one may begin."""
    return 3 * heads


def propose(
    model: Transformer,
    rows: Sequence[Running],
    window: Window,
    choose: Choose,
) -> None:
    """Extend the empty drafts of rows whose output has grown since the window was read.

    choose: tokens (N,) from logits (N, V), behind the output and the draft of each row.
    """
    starts, states, context = window
    width, heads = states.shape[1], len(model.mtp)
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
        chosen = choose(model.logits(model.normalized(states[every, newest], by)))
        tokens[every, newest + by + 1] = chosen
        for row, token in zip(rows, chosen.tolist(), strict=True):
            row.draft.append(token)
    for row in rows:  # the last token needs no draft: the model draws it itself
        del row.draft[max(row.request.max_tokens - len(row.output) - 1, 0) :]
