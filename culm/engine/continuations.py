"""How likely texts are after their contexts, as multiple choice asks: nothing is generated.

Options of a question share its context, and questions often share a beginning, such as the same
examples. Each is read once, into a cache that what follows it continues:

    examples  ->  question 1  ->  option A, option B, option C
              ->  question 2  ->  option A, option B

The output head reads the options alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from culm.engine import scoring
from culm.model.cache import Cache
from culm.model.context import Context
from culm.model.transformer import Transformer

FORWARD_TOKENS = 8192  # of the cache of one group, padding included: bounds its memory
HEAD_TOKENS = 256  # whose logits are in memory at once
BEGINNING = 64  # contexts that agree in so many tokens are read together

Ids = tuple[int, ...]


class Likelihood(NamedTuple):
    """Of a continuation after its context.

    logprob: natural log, the sum over its tokens. tokens: their number. greedy: whether each of
    them is the most likely one in its place.
    """

    logprob: float
    tokens: int
    greedy: bool


@dataclass
class _Asked:
    """A context, and where its continuations stand among all."""

    context: Ids
    continuations: list[tuple[int, Ids]]

    @property
    def rows(self) -> list[tuple[int, Ids]]:
        """Continuations of more than one token; the first one follows from the context alone."""
        return [one for one in self.continuations if len(one[1]) > 1]

    @property
    def width(self) -> int:
        return max(len(ids) for _, ids in self.continuations)

    @property
    def longest(self) -> int:
        return len(self.context) + self.width


@torch.inference_mode()
def likelihoods(
    model: Transformer, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[Likelihood]:
    """For each pair (context, continuation), both at least one token, in their order.

    Raises:
        ValueError: one of them is empty, or an id is outside the vocabulary.
    """
    scoring.check(model, [ids for pair in pairs for ids in pair], [None] * (2 * len(pairs)))
    found: list[Likelihood | None] = [None] * len(pairs)
    for beginning in _by_beginning(pairs):
        for index, one in _Beginning(model, beginning).read():
            found[index] = one
    return [one for one in found if one is not None]


def _by_beginning(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[_Asked]]:
    """Contexts, each once, in groups that agree in their first tokens."""
    asked: dict[Ids, _Asked] = {}
    for index, (given, continuation) in enumerate(pairs):
        context = tuple(given)
        asked.setdefault(context, _Asked(context, [])).continuations.append(
            (index, tuple(continuation))
        )
    groups: dict[Ids, list[_Asked]] = {}
    for one in asked.values():
        key = one.context[:BEGINNING] if len(one.context) > BEGINNING else ()
        groups.setdefault(key, []).append(one)
    return list(groups.values())


class _Beginning:
    """Contexts with the same first tokens, which are read once for each cache."""

    def __init__(self, model: Transformer, asked: Sequence[_Asked]) -> None:
        self.model = model
        self.asked = sorted(asked, key=lambda one: one.longest, reverse=True)
        self.shared = _agreeing([one.context for one in asked]) if len(asked) > 1 else 0
        if self.shared < BEGINNING:
            self.shared = 0
        self._cache: Cache | None = None

    def read(self) -> Iterator[tuple[int, Likelihood]]:
        """Pairs (index, likelihood) of all continuations, the longest texts first."""
        for group in self._groups():
            yield from self._group(group)

    def _groups(self) -> Iterator[list[_Asked]]:
        """Contexts of similar length, whose rows fit into the cache."""
        group: list[_Asked] = []
        for one in self.asked:
            slots, length = _size([*group, one])
            fits = slots * length <= FORWARD_TOKENS and length <= self.model.config.context
            if group and not fits:
                yield group
                group = []
            group.append(one)
        yield group

    def _group(self, group: list[_Asked]) -> Iterator[tuple[int, Likelihood]]:
        # Those without rows come last: a row is copied from a slot before its own.
        group = sorted(group, key=lambda one: not one.rows)
        first = self._contexts(group)
        yield from self._single(group, first)
        rows = [(slot, *row) for slot, one in enumerate(group) for row in one.rows]
        if rows:
            yield from self._rows(group, rows, first)

    def _single(self, group: list[_Asked], first: Tensor) -> Iterator[tuple[int, Likelihood]]:
        """Continuations of one token. first: log-probabilities (N, V) after each context."""
        single = [
            (slot, index, ids[0])
            for slot, one in enumerate(group)
            for index, ids in one.continuations
            if len(ids) == 1
        ]
        for slot, index, token in single:
            value = first[slot]
            yield index, Likelihood(float(value[token]), 1, bool(value.argmax() == token))

    def _contexts(self, group: list[_Asked]) -> Tensor:
        """Read contexts into the first slots; log-probabilities (N, V) after each."""
        model, shared = self.model, self.shared
        cache = self._room(*_size(group))
        for slot in range(len(group) if shared else 0):
            cache.copy(cache.slots - 1, slot, shared)
        parts = [one.context[shared:] for one in group]
        ends = [len(part) for part in parts]
        hidden = self._forward(cache, parts, [shared] * len(group))
        last = hidden[torch.arange(len(group)), torch.tensor(ends, device=model.device) - 1]
        return torch.cat([model.logits(x).log_softmax(-1) for x in last.split(HEAD_TOKENS)])

    def _rows(
        self, group: list[_Asked], rows: list[tuple[int, int, Ids]], first: Tensor
    ) -> Iterator[tuple[int, Likelihood]]:
        """Continuations of several tokens. rows: (slot of the context, index, ids)."""
        cache = self._cache
        assert cache is not None
        for slot, (source, _, _) in reversed(list(enumerate(rows))):
            if slot != source:  # a source comes before its copies, which are made from the back
                cache.copy(source, slot, len(group[source].context))
        starts = [len(group[source].context) for source, _, _ in rows]
        hidden = self._forward(cache, [ids[:-1] for _, _, ids in rows], starts)
        real = torch.cat([x[: len(ids) - 1] for x, (_, _, ids) in zip(hidden, rows, strict=True)])
        targets = torch.tensor([t for _, _, ids in rows for t in ids[1:]], device=real.device)
        logprobs, greedy = self._targets(real, targets)
        start = 0
        for source, index, ids in rows:
            end = start + len(ids) - 1
            value = first[source]
            total = float(value[ids[0]]) + float(logprobs[start:end].sum())
            top = bool(value.argmax() == ids[0]) and bool(greedy[start:end].all())
            yield index, Likelihood(total, len(ids), top)
            start = end

    def _targets(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each target (N,) fp64, and whether it is the most likely one."""
        logprobs, greedy = [], []
        for x, wanted in zip(hidden.split(HEAD_TOKENS), targets.split(HEAD_TOKENS), strict=True):
            scores = self.model.logits(x).log_softmax(-1)
            logprobs.append(scores.gather(-1, wanted[:, None])[:, 0].double())
            greedy.append(scores.argmax(-1) == wanted)
        return torch.cat(logprobs), torch.cat(greedy)

    def _forward(self, cache: Cache, parts: Sequence[Ids], starts: Sequence[int]) -> Tensor:
        """States (N, T, E) of tokens that continue the first slots from given positions on."""
        device, width = self.model.device, max(map(len, parts))
        tokens = torch.tensor([part + (0,) * (width - len(part)) for part in parts], device=device)
        start = torch.tensor(starts, device=device)
        ends = start + torch.tensor([len(part) for part in parts], device=device)
        positions = start[:, None] + torch.arange(width, device=device)
        view = cache.view(max(starts) + width, 0, ends)
        return self.model.hidden(tokens, Context(positions, cache=view))

    def _room(self, slots: int, length: int) -> Cache:
        """A cache of at least this size, whose last slot holds the shared tokens.

        It is used again until texts are half as long.
        """
        cache = self._cache
        if cache is None or cache.slots < slots or not length <= cache.length <= 2 * length:
            slots = max(slots, min(_size(self.asked)[0], FORWARD_TOKENS // length))
            cache = self._cache = self.model.cache(slots, length)
            if self.shared:
                tokens = torch.tensor([self.asked[0].context[: self.shared]])
                positions = torch.arange(self.shared)[None].to(self.model.device)
                view = cache.view(self.shared, slots - 1)
                self.model.hidden(tokens.to(self.model.device), Context(positions, cache=view))
        return cache


def _size(group: Sequence[_Asked]) -> tuple[int, int]:
    """Slots of a cache for a group, with one for the shared tokens; tokens of a slot."""
    slots = 1 + sum(max(len(one.rows), 1) for one in group)
    return slots, max(len(one.context) for one in group) + max(one.width for one in group)


def _agreeing(contexts: Sequence[Ids]) -> int:
    """How many first tokens all contexts share, at least one of each left to read."""
    low, high = min(contexts), max(contexts)  # in the order of tokens, the two that differ first
    most = min(map(len, contexts)) - 1
    return next((i for i in range(most) if low[i] != high[i]), most)
