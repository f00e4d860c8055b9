"""Log-probabilities of given ids; nothing is generated.

Many sequences share a forward without a cache. One long sequence can be read in steps through a
cache of its own, so that other work runs between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from culm.adapt.multi_lora import adapter_names, adapter_rows, check_adapter
from culm.model.ability import require_text
from culm.model.context import Context
from culm.model.transformer import Transformer

FORWARD_TOKENS = 8192  # of one forward, padding included: bounds its memory
STEP_TOKENS = 256  # of one step of `rank_in_steps`

Names = Sequence[str | None]  # of adapters, one for each sequence; None: the base model


class Ranked(NamedTuple):
    """Scores of T tokens: how likely each one after the first was, and what was most likely.

    logprobs: (T - 1,). tokens, values: (T - 1, k), ids and log-probabilities in falling order.
    """

    logprobs: Tensor
    tokens: Tensor
    values: Tensor


@torch.no_grad()
def logits_of(model: Transformer, ids: Sequence[int], adapter: str | None = None) -> Tensor:
    """ids: T tokens -> (T, V) fp32: row t scores the token after ids[t].

    Raises:
        ValueError: an id is outside the vocabulary, there is none, or the adapter is not known.
    """
    check(model, [ids], [adapter])
    tokens = torch.tensor([list(ids)], device=model.device)
    return model(tokens, context_of(model, tokens, [adapter]))[0]


@torch.no_grad()
def score(
    model: Transformer, sequences: Sequence[Sequence[int]], adapters: Names | None = None
) -> list[Tensor]:
    """For each sequence of T tokens its log-probabilities (T - 1,) fp32: element t of ids[t + 1].

    Sequences of similar length share a forward. They may exceed the context, for which the model
    was not trained. adapters: one for each sequence; None: the base model for all.

    Raises:
        ValueError: as `logits_of`.
    """
    names = [None] * len(sequences) if adapters is None else list(adapters)
    check(model, sequences, names)
    scores = [torch.zeros(0, device=model.device) for _ in sequences]
    for group in _similar([len(ids) for ids in sequences]):
        longest = len(sequences[group[-1]])
        padded = [[*sequences[i], *[0] * (longest - len(sequences[i]))] for i in group]
        tokens = torch.tensor(padded, device=model.device)
        context = context_of(model, tokens[:, :-1], [names[i] for i in group])
        found = model.logprobs(tokens[:, :-1], tokens[:, 1:], context)
        for i, row in zip(group, found, strict=True):
            scores[i] = row[: len(sequences[i]) - 1]
    return scores


def rank(model: Transformer, ids: Sequence[int], count: int, adapter: str | None = None) -> Ranked:
    """Like `score` for one sequence, with the `count` most likely tokens in the place of each.

    Raises:
        ValueError: as `logits_of`.
    """
    return joined(list(rank_in_steps(model, ids, count, adapter)))


@torch.no_grad()
def rank_in_steps(
    model: Transformer,
    ids: Sequence[int],
    count: int,
    adapter: str | None = None,
    step_tokens: Callable[[], int] = lambda: STEP_TOKENS,
) -> Iterator[Ranked]:
    """`rank` in parts of `step_tokens()` tokens, each computed when it is asked for.

    Raises:
        ValueError: as `logits_of`.
    """
    check(model, [ids], [adapter])
    cache = model.cache(1, len(ids))
    end = 0
    while end < max(len(ids) - 1, 1):
        start, end = end, min(end + step_tokens(), len(ids))
        tokens = torch.tensor([list(ids[start:end])], device=model.device)
        positions = torch.arange(start, end, device=model.device)[None]
        context = context_of(model, tokens, [adapter])
        context = replace(context, positions=positions, cache=cache.view(end))
        following = list(ids[start + 1 : end + 1])
        logprobs = model(tokens, context)[0, : len(following)].log_softmax(-1)
        best = logprobs.topk(min(count, logprobs.shape[-1]))
        chosen = torch.tensor(following, dtype=torch.int64, device=logprobs.device)
        yield Ranked(logprobs.gather(-1, chosen[:, None])[:, 0], best.indices, best.values)


def joined(parts: Sequence[Ranked]) -> Ranked:
    """Parts of one sequence in order as one."""
    return Ranked(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def check(model: Transformer, sequences: Sequence[Sequence[int]], names: Names) -> None:
    """ValueError if a sequence or an adapter (one for each) cannot be used."""
    require_text(model)
    size, known = model.config.vocabulary, adapter_names(model)
    if len(names) != len(sequences):
        raise ValueError(f"adapters: {len(names)} are given for {len(sequences)} sequences")
    for ids in sequences:
        if not len(ids):
            raise ValueError("ids: they are empty; give at least one token")
        if outside := [token for token in ids if not 0 <= token < size]:
            raise ValueError(f"ids: token {outside[0]} is outside the vocabulary of {size}")
    for name in names:
        check_adapter(name, known)


def context_of(model: Transformer, tokens: Tensor, names: Names) -> Context:
    rows = adapter_rows(names, adapter_names(model), model.device)
    return replace(Context.plain(tokens), adapters=rows)


def _similar(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of sequences with something to score, sorted by length, in groups for one forward."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if lengths[i] < 2:
            continue
        if group and (len(group) + 1) * lengths[i] > FORWARD_TOKENS:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
