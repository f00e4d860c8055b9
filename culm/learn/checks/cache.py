"""Exercises of lesson 3b: what a model stores of the tokens so far."""

from __future__ import annotations

import torch
from torch import Tensor

from culm.learn.exercise import Exercise, Mistake, normal
from culm.learn.practice import small
from culm.model import attend as library
from culm.model.attend_cached import attend_cached
from culm.model.attention.gqa import GQA
from culm.model.cache import RollingCache
from culm.model.context import CacheView, Context
from culm.model.score_rule import ScoreRule

Step = tuple[Tensor, Tensor, Tensor]


def step(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Step:
    keys, values = torch.cat((keys, k[:, None]), 1), torch.cat((values, v[:, None]), 1)
    at = torch.arange(keys.shape[1])
    out = attend_cached(q[None, None], keys[None], values[None], at, at[None, -1:])
    return out[0, 0], keys, values


def step_answer(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Step:
    keys, values = torch.cat((keys, k[:, None]), 1), torch.cat((values, v[:, None]), 1)
    scores = (keys @ q[:, :, None])[..., 0] / q.shape[-1] ** 0.5  # (H, S)
    shares = scores.softmax(-1)
    return (shares[:, None] @ values)[:, 0], keys, values


def _step_without_itself(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Step:
    _, more_keys, more_values = step_answer(q, k, v, keys, values)
    out = step_answer(q, keys[:, -1], values[:, -1], keys[:, :-1], values[:, :-1])[0]
    return out, more_keys, more_values


def tokens_read(prompt: int, new: int) -> tuple[int, int]:
    return sum(range(prompt, prompt + new)), prompt + new - 1


def _read_one_more(prompt: int, new: int) -> tuple[int, int]:
    return tokens_read(prompt, new)[0], prompt + new


def window_mask(length: int, window: int) -> Tensor:
    context = Context(torch.arange(length)[None])
    return library.visible(0, length, 0, length, context, ScoreRule(window=window))[0, 0]


def window_mask_answer(length: int, window: int) -> Tensor:
    back = torch.arange(length)[:, None] - torch.arange(length)
    return (back >= 0) & (back < window)


def sink_mask(length: int, window: int, sinks: int) -> Tensor:
    context, rule = Context(torch.arange(length)[None]), ScoreRule(window=window, sink_tokens=sinks)
    return library.visible(0, length, 0, length, context, rule)[0, 0]


def sink_mask_answer(length: int, window: int, sinks: int) -> Tensor:
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    first = torch.arange(length) < sinks
    return causal & (window_mask_answer(length, window) | first)


def _sinks_ahead(length: int, window: int, sinks: int) -> Tensor:
    return window_mask_answer(length, window) | (torch.arange(length) < sinks)


def sink_weights(q: Tensor, k: Tensor, sink: float) -> Tensor:
    rule = ScoreRule(sink_logits=torch.tensor([sink]))
    return library.attention_weights(q[None, :, None], k[None, :, None], rule)[0, 0]


def sink_weights_answer(q: Tensor, k: Tensor, sink: float) -> Tensor:
    scores = q @ k.T / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~window_mask_answer(len(q), len(q)), float("-inf"))
    more = torch.cat((scores, torch.full((len(q), 1), sink)), dim=-1)
    return more.softmax(-1)[:, :-1]


def _sink_of_zero(q: Tensor, k: Tensor, sink: float) -> Tensor:
    return sink_weights_answer(q, k, float("-inf"))


def held(length: int, sinks: int, ring: int) -> list[int]:
    cache = RollingCache([torch.zeros(1, 1, sinks + ring, 1)], sinks)
    positions = torch.arange(length)[None]
    context = Context(positions, cache=CacheView([cache], 0, length))
    cache.update(context, torch.zeros(1, length, 1, 1))
    return cache.at[0].tolist()


def held_answer(length: int, sinks: int, ring: int) -> list[int]:
    entries = [-1] * (sinks + ring)
    for position in range(length):
        entries[entry(position, sinks, ring)] = position
    return entries


def _held_without_sinks(length: int, sinks: int, ring: int) -> list[int]:
    return held_answer(length, 0, sinks + ring)


def _held_in_order(length: int, sinks: int, ring: int) -> list[int]:
    return sorted(held_answer(length, sinks, ring))


def entry(position: int, sinks: int, ring: int) -> int:
    return held(position + 1, sinks, ring).index(position)


def entry_answer(position: int, sinks: int, ring: int) -> int:
    if position < sinks:
        return position
    return sinks + (position - sinks) % ring


def memory(tokens: int, layers: int, kv_heads: int, head_dim: int, window: int) -> int:
    attention = GQA(heads=kv_heads, head_dim=head_dim, window=window)
    model = small(attention, width=32, layers=layers).build(device="meta")
    model.dtype = torch.bfloat16
    return model.cache(1, tokens).bytes


def memory_answer(tokens: int, layers: int, kv_heads: int, head_dim: int, window: int) -> int:
    return layers * 2 * kv_heads * head_dim * min(tokens, window) * 2


def _memory_of_window(tokens: int, layers: int, kv_heads: int, head_dim: int, window: int) -> int:
    return layers * 2 * kv_heads * head_dim * window * 2


def _memory_of_all(tokens: int, layers: int, kv_heads: int, head_dim: int, window: int) -> int:
    return layers * 2 * kv_heads * head_dim * tokens * 2


def reach(layers: int, window: int) -> int:
    length = layers * window + 1
    mask = window_mask(length, window).float()
    seen = torch.linalg.matrix_power(mask, layers)[-1].nonzero()
    return length - 1 - int(seen[0])


def reach_answer(layers: int, window: int) -> int:
    return layers * (window - 1)


EXERCISES = (
    Exercise(
        "cache.tokens_read",
        "Count the tokens that a model computes to write `new` tokens after a prompt, without and "
        "with a cache.",
        tokens_read,
        lambda g: [(10, 5), (1, 1), (1000, 200)],
        None,
        (
            Mistake(
                "nothing has to be computed after the last new token: nobody asks what follows.",
                _read_one_more,
            ),
            Mistake(
                "without a cache, each new token needs all tokens before it again.",
                lambda prompt, new: (prompt + new - 1, prompt + new - 1),
            ),
        ),
    ),
    Exercise(
        "cache.step",
        "Append the key and the value of a new token, let its query attend to all, and give the "
        "result with both caches.",
        step,
        lambda g: [
            (*(normal(g, 3, 4) for _ in range(3)), normal(g, 3, 5, 4), normal(g, 3, 5, 4)),
            (*(normal(g, 2, 4) for _ in range(3)), normal(g, 2, 1, 4), normal(g, 2, 1, 4)),
        ],
        step_answer,
        (Mistake("a token reads itself too: append first.", _step_without_itself),),
    ),
    Exercise(
        "cache.window_mask",
        "Say which tokens each token may read: the last `window`, itself included.",
        window_mask,
        lambda g: [(8, 3), (4, 1), (5, 9)],
        window_mask_answer,
        (
            Mistake(
                "the token itself is one of the window.",
                lambda n, w: window_mask_answer(n, w + 1),
            ),
            Mistake(
                "nothing that follows is read.",
                lambda n, w: window_mask_answer(n, w) | window_mask_answer(n, w).T,
            ),
        ),
    ),
    Exercise(
        "cache.reach",
        "Say how far back a token can influence another through layers that all have a window.",
        reach,
        lambda g: [(1, 4), (3, 4), (4, 8), (5, 1)],
        reach_answer,
        (
            Mistake("the window includes the token itself: one less.", lambda n, w: n * w),
            Mistake("each layer reads what the layer before it made.", lambda n, w: w - 1),
        ),
    ),
    Exercise(
        "cache.memory",
        "Count the bytes of a cache of this many tokens in bf16, of which a window keeps the last.",
        memory,
        lambda g: [(100, 2, 2, 16, 32), (20, 3, 1, 8, 32), (7, 1, 1, 4, 7)],
        memory_answer,
        (
            Mistake("a text that is shorter than the window needs less.", _memory_of_window),
            Mistake("only the tokens of the window are kept.", _memory_of_all),
        ),
    ),
    Exercise(
        "cache.entry",
        "Say where a position is stored: the first `sinks` in their own entries, the others in a "
        "ring after them.",
        entry,
        lambda g: [(0, 2, 4), (1, 2, 4), (2, 2, 4), (6, 2, 4), (9, 0, 4)],
        entry_answer,
        (
            Mistake(
                "the ring starts after the sinks: add their number again.",
                lambda p, s, r: p if p < s else (p - s) % r,
            ),
            Mistake(
                "the ring begins with the first position that is no sink.",
                lambda p, s, r: p if p < s else s + p % r,
            ),
        ),
    ),
    Exercise(
        "cache.held",
        "List the position in each entry after `length` tokens; -1 for an empty one.",
        held,
        lambda g: [(3, 2, 4), (6, 2, 4), (11, 2, 4), (9, 0, 3)],
        held_answer,
        (
            Mistake("the first tokens are never overwritten.", _held_without_sinks),
            Mistake("entries are not in the order of the text.", _held_in_order),
        ),
    ),
    Exercise(
        "cache.sink_mask",
        "Say which tokens each token may read: the last `window`, and the first `sinks` of those "
        "before it.",
        sink_mask,
        lambda g: [(8, 3, 2), (6, 2, 1), (4, 2, 3)],
        sink_mask_answer,
        (
            Mistake("a sink that comes later must not be read.", _sinks_ahead),
            Mistake(
                "the first tokens stay visible.",
                lambda n, w, s: window_mask_answer(n, w),
            ),
        ),
    ),
    Exercise(
        "cache.sink_weights",
        "Compute causal attention weights with one more score that takes a share, a sink.",
        sink_weights,
        lambda g: [
            (normal(g, 5, 4), normal(g, 5, 4), 1.0),
            (normal(g, 2, 4), normal(g, 2, 4), -9.0),
        ],
        sink_weights_answer,
        (
            Mistake("the rows sum to less than 1: the sink takes its share.", _sink_of_zero),
            Mistake(
                "the sink is a score in the softmax, not a number that is subtracted.",
                lambda q, k, s: _sink_of_zero(q, k, s) - s,
            ),
        ),
    ),
)
