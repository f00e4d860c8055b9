"""Continuous thoughts (Coconut, arXiv 2412.06769): states in place of words between question and
answer.

    question <bot>  h_0  h_1 ... <eot>  answer
                |    ^
                +----+   the input of a latent position is the last state of the position before it

n latents take n + 1 forwards, each over what the ones before have not read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from culm.config import SettingError
from culm.model.attention.gqa import GQA
from culm.model.cache import FullCache
from culm.model.context import CacheView, Context
from culm.model.transformer import Transformer

FAR = 1 << 20  # the position of padding: after every token, so that none sees it


class GrowingCache(FullCache):
    """Keys and values of all tokens so far; nothing is overwritten, so that gradients flow."""

    def __init__(self) -> None:
        super().__init__(())
        self.at: Tensor | None = None

    def update(self, context: Context, *new: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Append tensors (B, T, K, D) at `context.positions`; (B, K, S, D) of all, and (B, S)."""
        fresh, at = tuple(part.transpose(1, 2) for part in new), context.positions
        if self.at is None:
            self.tensors, self.at = fresh, at
        else:
            pairs = zip(self.tensors, fresh, strict=True)
            self.tensors = tuple(torch.cat(pair, 2) for pair in pairs)
            self.at = torch.cat((self.at, at), 1)
        return self.tensors, self.at


def check_thinks(model: Transformer) -> None:
    """Whether a model can read its own states.

    Raises:
        SettingError: a layer does not store the keys of all tokens.
    """
    for part in model.config.attention:
        if not isinstance(part, GQA) or part.window is not None:
            raise SettingError(
                "model.attention: continuous thoughts need grouped-query attention without a "
                "window; use {kind: gqa}"
            )


def thinking_states(
    model: Transformer, tokens: Tensor, context: Context, first: int, count: int
) -> Tensor:
    """(B, T, E), as `Transformer.hidden` gives them, with `count` latents from column `first` on.

    tokens: (B, T); those of latents are not read. The question of each row ends before `first`;
    padding may come before it and at the end.
    """
    if not count:
        return model.hidden(tokens, context)
    positions = context.positions
    if context.padding is not None:
        positions = positions.masked_fill(context.padding, FAR)
    layers = [GrowingCache() for _ in model.blocks]
    states: list[Tensor] = []

    def read(start: int, end: int) -> None:
        """The columns from `start` on, of which the first one is a latent, unless it is 0."""
        part, embeddings = tokens[:, start:end], None
        if states:
            given = torch.zeros_like(part, dtype=torch.bool)
            given[:, 0] = True
            vectors = states[-1][:, -1:].expand(-1, end - start, -1)
            embeddings = given, vectors
        view = CacheView(layers, 0, end)
        inner = Context(positions[:, start:end], cache=view, embeddings=embeddings)
        states.append(model.hidden(part, inner))

    read(0, first)
    for latent in range(first, first + count - 1):
        read(latent, latent + 1)
    read(first + count - 1, tokens.shape[1])
    return torch.cat(states, 1)


@torch.no_grad()
def thoughts(model: Transformer, tokens: Tensor, count: int) -> Tensor:
    """(count, E): the thoughts after a question (T,), which ends with <bot>."""
    rest = torch.zeros(count, dtype=tokens.dtype, device=tokens.device)
    row = torch.cat((tokens, rest))[None]
    states = thinking_states(model, row, Context.plain(row), len(tokens), count)
    return states[0, len(tokens) - 1 : len(tokens) - 1 + count]
