"""Log-probabilities of given continuations, for multiple choice; nothing is generated.

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
CHUNK_TOKENS = 128  # from which on a forward is worth its overhead
PADDED = 0.8  # a part that is shorter than this share of the longest goes into another forward
HEAD_TOKENS = 256  # whose logits are in memory at once
BEGINNING = 64  # contexts that share this many first tokens are read together

Ids = tuple[int, ...]


class Likelihood(NamedTuple):
    """Of a continuation after its context.

    logprob: natural log, the sum over its tokens. tokens: their number. greedy: whether each of
    them is the most likely one in its place.
    """

    logprob: float
    tokens: int
    greedy: bool


class _Row(NamedTuple):
    """A continuation of several tokens. source: slot of its context. first: its first token.

    number: its place among all.
    """

    source: int
    number: int
    ids: Ids
    first: Likelihood


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
        groups.setdefault(one.context[:BEGINNING], []).append(one)
    alone = [one for group in groups.values() if len(group) == 1 for one in group]
    return [group for group in groups.values() if len(group) > 1] + [alone] * bool(alone)


class _Beginning:
    """Contexts with the same first tokens, which are read once for each cache."""

    def __init__(self, model: Transformer, asked: Sequence[_Asked]) -> None:
        self.model = model
        self.asked = sorted(asked, key=lambda one: len(one.context), reverse=True)
        shared = _agreeing([one.context for one in asked]) if len(asked) > 1 else 0
        self.shared = shared if shared >= BEGINNING else 0
        self._cache: Cache | None = None

    def read(self) -> Iterator[tuple[int, Likelihood]]:
        """Pairs (index, likelihood) of all continuations, those of long contexts first."""
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
        """The slots hold the contexts, then a copy for each continuation of several tokens."""
        cache = self._room(*_size(group))
        first = self._contexts(cache, group)
        rows: list[_Row] = []
        for source, one in enumerate(group):
            for index, ids in one.continuations:
                value = first[source]
                start = Likelihood(float(value[ids[0]]), 1, bool(value.argmax() == ids[0]))
                if len(ids) == 1:
                    yield index, start
                else:
                    rows.append(_Row(source, index, ids, start))
        yield from self._rows(cache, group, rows)

    def _contexts(self, cache: Cache, group: list[_Asked]) -> Tensor:
        """Read contexts, which are sorted by length; log-probabilities (N, V) after each."""
        for slot in range(len(group) if self.shared else 0):
            cache.copy(cache.slots - 1, slot, self.shared)
        parts = [one.context[self.shared :] for one in group]
        last: list[Tensor] = []
        for first, chunk in _chunks(parts):
            hidden = self._forward(cache, first, chunk, [self.shared] * len(chunk))
            last += [x[len(part) - 1] for x, part in zip(hidden, chunk, strict=True)]
        chunks = torch.stack(last).split(HEAD_TOKENS)
        return torch.cat([self.model.logits(x).log_softmax(-1) for x in chunks])

    def _rows(
        self, cache: Cache, group: list[_Asked], rows: list[_Row]
    ) -> Iterator[tuple[int, Likelihood]]:
        """Continuations of several tokens, whose first ones are known."""
        rows = sorted(rows, key=lambda row: len(row.ids), reverse=True)
        starts = [len(group[row.source].context) for row in rows]
        for slot, (row, start) in enumerate(zip(rows, starts, strict=True), start=len(group)):
            cache.copy(row.source, slot, start)
        for at, chunk in _chunks([row.ids[:-1] for row in rows]):
            own = rows[at : at + len(chunk)]
            hidden = self._forward(cache, len(group) + at, chunk, starts[at : at + len(chunk)])
            real = torch.cat([x[: len(part)] for x, part in zip(hidden, chunk, strict=True)])
            targets = torch.tensor([token for row in own for token in row.ids[1:]])
            logprobs, greedy = self._targets(real, targets.to(real.device))
            sizes = [len(part) for part in chunk]
            for row, values, tops in zip(
                own, logprobs.split(sizes), greedy.split(sizes), strict=True
            ):
                total = row.first.logprob + float(values.sum())
                greedy_too = row.first.greedy and bool(tops.all())
                yield row.number, Likelihood(total, len(row.ids), greedy_too)

    def _targets(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each target (N,) fp64, and whether it is the most likely one."""
        logprobs, greedy = [], []
        for x, wanted in zip(hidden.split(HEAD_TOKENS), targets.split(HEAD_TOKENS), strict=True):
            scores = self.model.logits(x).log_softmax(-1)
            logprobs.append(scores.gather(-1, wanted[:, None])[:, 0].double())
            greedy.append(scores.argmax(-1) == wanted)
        return torch.cat(logprobs), torch.cat(greedy)

    def _forward(
        self, cache: Cache, slot: int, parts: Sequence[Ids], starts: Sequence[int]
    ) -> Tensor:
        """States (N, T, E) of tokens that continue the slots from `slot` on, at given positions."""
        device, width = self.model.device, max(map(len, parts))
        tokens = torch.tensor([part + (0,) * (width - len(part)) for part in parts], device=device)
        start = torch.tensor(starts, device=device)
        ends = start + torch.tensor([len(part) for part in parts], device=device)
        positions = start[:, None] + torch.arange(width, device=device)
        view = cache.view(max(starts) + width, slot, ends)
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
    slots = 1 + len(group) + sum(len(one.rows) for one in group)
    return slots, max(len(one.context) for one in group) + max(one.width for one in group)


def _chunks(parts: Sequence[Ids]) -> Iterator[tuple[int, list[Ids]]]:
    """Parts for one forward each, with the place of the first; parts are sorted, the longest first.

    A shorter part begins a new one, where there is enough to compute in the one before.
    """
    start, tokens = 0, 0
    for place, part in enumerate(parts):
        if tokens >= CHUNK_TOKENS and len(part) < PADDED * len(parts[start]):
            yield start, list(parts[start:place])
            start, tokens = place, 0
        tokens += len(part)
    if start < len(parts):
        yield start, list(parts[start:])


def _agreeing(contexts: Sequence[Ids]) -> int:
    """How many first tokens all contexts share, at least one of each left to read."""
    low, high = min(contexts), max(contexts)  # in the order of tokens, the two that differ first
    most = min(map(len, contexts)) - 1
    return next((i for i in range(most) if low[i] != high[i]), most)
