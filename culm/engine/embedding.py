"""A vector for a text: the mean of the model's last hidden states, of unit length.

A model that was only trained to predict tokens gives rough vectors: near texts are near, and more
cannot be expected.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.engine.scoring import STEP_TOKENS, check, context_of
from culm.model.context import CacheView
from culm.model.transformer import Transformer


class EmbeddedPart(NamedTuple):
    """One step. tokens: that were read, with padding. vectors: (width,) fp32 each, by the index of
    the text; there are none while a long text is read.
    """

    tokens: int
    vectors: Mapping[int, Tensor]


@torch.no_grad()
def embed_in_steps(
    model: Transformer,
    texts: Sequence[Sequence[int]],
    adapter: str | None = None,
    step_tokens: Callable[[], int] = lambda: STEP_TOKENS,
) -> Iterator[EmbeddedPart]:
    """Vectors of all texts, short ones first; each step reads `step_tokens()` tokens, if there are
    this many.

    Short texts share a forward; a long one is read in parts, through a cache.

    Raises:
        ValueError: an id is outside the vocabulary, a text is empty, or the adapter is not known.
    """
    check(model, texts, [adapter] * len(texts))
    waiting = deque(sorted(range(len(texts)), key=lambda index: len(texts[index])))
    while waiting:
        room, group = step_tokens(), [waiting.popleft()]
        if len(texts[group[0]]) > room:
            yield from _long(model, group[0], texts[group[0]], adapter, room, step_tokens)
            continue
        while waiting and (len(group) + 1) * len(texts[waiting[0]]) <= room:
            group.append(waiting.popleft())
        longest = len(texts[group[-1]])
        rows = [[*texts[index], *[0] * (longest - len(texts[index]))] for index in group]
        states = _states(model, rows, [adapter] * len(group))
        sums = {i: row[: len(texts[i])].sum(0) for i, row in zip(group, states, strict=True)}
        vectors = {index: F.normalize(total, dim=0) for index, total in sums.items()}
        yield EmbeddedPart(len(group) * longest, vectors)


def _long(
    model: Transformer,
    index: int,
    ids: Sequence[int],
    adapter: str | None,
    room: int,
    step_tokens: Callable[[], int],
) -> Iterator[EmbeddedPart]:
    """The parts of one text."""
    cache, end, total = model.cache(1, len(ids)), 0, torch.zeros((), device=model.device)
    while end < len(ids):
        start, end = end, min(end + room, len(ids))
        total = total + _states(model, [ids[start:end]], [adapter], start, cache.view(end))[0].sum(
            0
        )
        last = end == len(ids)
        yield EmbeddedPart(end - start, {index: F.normalize(total, dim=0)} if last else {})
        room = step_tokens()


def _states(
    model: Transformer,
    rows: Sequence[Sequence[int]],
    adapters: Sequence[str | None],
    start: int = 0,
    view: CacheView | None = None,
) -> Tensor:
    """(N, T, width) fp32. start: position of the first token of the rows."""
    tokens = torch.tensor([list(row) for row in rows], device=model.device)
    context = context_of(model, tokens, adapters)
    if view is not None:
        context = replace(context, positions=context.positions + start, cache=view)
    return model.hidden(tokens, context).float()
