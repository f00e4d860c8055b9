"""Speculative decoding: heads of multi-token prediction guess, the model reads and decides.

known to the row     t t t t t t t
guessed by heads                   g g          head k guesses the token k + 1 places behind
read at once               [ t t t g g ]        the state that the trunk had made (`culm.model.mtp`)
drawn by the model                 g x          the first guess stands, the second does not

Every place is drawn from the model itself, by the random number that belongs to it, and a guess
stands while it is what was drawn. So a request gets the tokens that it gets without guesses, up to
rounding, and a guess stands as often as under rejection sampling (arXiv 2211.17192) from a draft
without chance: with the probability that the model gives it. Guesses are drawn by those same
numbers, so that draft and model choose alike where they agree.

A window of 2G tokens for G heads holds all that a step must read again: the entries that heads
made from guesses, and at the end of a prompt those for which they had no next token yet.
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
            "speculate: this model has no heads to guess tokens with; train it with model.mtp, "
            "and load the folder of that run"
        )
    layers = model.cache(1, 1).layers
    if any(isinstance(layer, StateCache) for layer in layers):
        raise SettingError(
            "speculate: a layer of this model keeps a state, which cannot go back to the token "
            "before a wrong guess; leave it out"
        )


def rewound(heads: int) -> int:
    """The most tokens between what a step has read and where the next one may begin."""
    return 3 * heads


def guess(
    model: Transformer,
    rows: Sequence[Running],
    window: Window,
    choose: Choose,
) -> None:
    """Give rows whose output has grown since the window was read the guesses that follow it.

    choose: tokens (N,) from logits (N, V), behind the output and the guesses of each row.
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
        states = model.ahead(by, states, tokens[:, by : by + width], context)
        chosen = choose(model.logits(model.normalized(states[every, newest], by)))
        tokens[every, newest + by + 1] = chosen
        for row, token in zip(rows, chosen.tolist(), strict=True):
            row.guesses.append(token)
    for row in rows:  # the last token needs no guess: the model draws it itself
        del row.guesses[max(row.request.tokens - len(row.output) - 1, 0) :]
